import Testing
import UnitSupport

@testable import VhostProtocol

/// A queue of slots, and a disk behind it that finishes requests in any order.
private final class SlotRig {
    static let address: UInt64 = 1 << 40
    private static let dataBytes = Int(SlotQueueLayout.slots) * 1024
    static let sectors = 32
    let memory = GuestArray([(address, Int(SlotQueueLayout.byteCount) + dataBytes)])
    let base: GuestPlace
    var queue: SlotQueue
    private var device: Virtqueue
    var disk = ModelDisk(sectors: sectors)

    /// Indexes begin where somebody has done so many requests.
    init(from index: UInt16 = 0) throws {
        base = try #require(memory.segment(at: Self.address, byteCount: 1)?.place)
        queue = SlotQueue(at: base, address: Self.address)
        queue.availableIndex = index
        queue.toldIndex = index
        queue.takenIndex = index
        let used = base.advanced(by: SlotQueueLayout.used + SplitRing.indexOffset)
        memory.store16(index, used)
        device = try Virtqueue(
            memory,
            QueueSetup(
                size: SlotQueueLayout.entries, base: index,
                rings: RingAddresses(
                    descriptors: Self.address + SlotQueueLayout.descriptors,
                    available: Self.address + SlotQueueLayout.available,
                    used: Self.address + SlotQueueLayout.used),
                hasEventIndex: true, hasIndirectDescriptors: false))
    }

    /// A place for data, by its number, as the device knows it and as this side does.
    func data(_ number: Int) -> (address: UInt64, place: GuestPlace) {
        let offset = SlotQueueLayout.byteCount + UInt64(number * 1024)
        return (Self.address + offset, base.advanced(by: offset))
    }

    func put(_ isWrite: Bool, _ sector: UInt64, _ data: Int, _ count: UInt32 = 512) -> UInt16? {
        queue.put(
            memory, isWrite: isWrite, sector: sector, data: self.data(data).address,
            byteCount: count)
    }

    var inFlight: Int { queue.inFlight }
    var hasRoom: Bool { queue.hasRoom }
    func publish() -> Bool { queue.publish(memory) }
    func take() throws(SlotQueueFault) -> SlotQueue.Done? { try queue.take(memory) }
    func hasNext() -> Bool { queue.hasNext(memory) }
    func wantCalls() -> Bool { queue.wantCalls(memory) }

    /// The disk takes what there is.
    func takeAll() throws {
        while try disk.take(&device, memory) != nil {}
    }
    /// It finishes one; whether this side wants to be called.
    func finish(_ index: Int) -> Bool {
        disk.finish(index, &device, memory)
        return device.publish(memory)
    }
    func wantKicks() throws -> Bool { try device.wantKicks(memory) }

    /// Bytes of the used ring, as a device writes them that does as it likes.
    func forge(_ bytes: [UInt8], _ offset: UInt64) {
        memory.write(bytes, Self.address + SlotQueueLayout.used + offset)
    }
}

/// The driver's side of a queue, as this server has it towards programs of its own.
@Suite("A queue of slots")
struct SlotQueueTests {
    private static func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    @Test("reads and writes what was asked, in any order, also where its indexes wrap")
    func content() throws {
        let rig = try SlotRig(from: 65_000)
        var random = SplitMix64(seed: 21)
        var expected = rig.disk.content
        var places = Array(0..<Int(SlotQueueLayout.slots))
        var asked: [UInt16: (sector: Int, data: Int, isWrite: Bool)] = [:]
        var busy: Set<Int> = []
        var done = 0
        while done < 3_000 {
            while places.count > 0, random.below(3) > 0 {
                let sector = random.below(SlotRig.sectors)
                guard busy.insert(sector).inserted else { break }
                let isWrite = random.below(2) == 0
                let data = places.removeLast()
                if isWrite {
                    let content = (0..<512).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                    rig.memory.write(content, rig.data(data).address)
                    expected.replaceSubrange(sector * 512..<sector * 512 + 512, with: content)
                }
                let put = rig.put(isWrite, UInt64(sector), data)
                let slot = try #require(put)
                #expect(asked.updateValue((sector, data, isWrite), forKey: slot) == nil)
            }
            _ = rig.publish()
            try rig.takeAll()
            for _ in 0..<random.below(rig.disk.inFlight.count + 1) {
                _ = rig.finish(random.below(rig.disk.inFlight.count))
            }
            while let over = try rig.take() {
                let found = asked.removeValue(forKey: over.slot)
                let was = try #require(found)
                #expect(over.isOK)
                if !was.isWrite, done % 16 == 0 {
                    let start = was.sector * 512
                    #expect(
                        rig.memory.read(rig.data(was.data).address, 512)
                            == Array(expected[start..<start + 512]))
                }
                places.append(was.data)
                busy.remove(was.sector)
                done += 1
            }
            #expect(rig.inFlight == asked.count)
        }
        while !rig.disk.inFlight.isEmpty { _ = rig.finish(0) }
        #expect(rig.disk.content == expected)
        #expect(rig.memory.strays == 0)
    }

    @Test("takes as many as it has slots for, and one more when one is over")
    func room() throws {
        let rig = try SlotRig()
        for number in 0..<SlotQueueLayout.slots {
            #expect(rig.hasRoom)
            #expect(rig.put(false, UInt64(number) % 32, 0) != nil)
        }
        #expect(!rig.hasRoom && rig.put(false, 0, 0) == nil)
        _ = rig.publish()
        try rig.takeAll()
        #expect(rig.disk.inFlight.count == Int(SlotQueueLayout.slots))
        _ = rig.finish(5)
        #expect(try rig.take() == SlotQueue.Done(slot: 5, isOK: true))
        #expect(rig.put(false, 0, 0) == 5)
    }

    @Test("says of what was not carried out that it was not")
    func refused() throws {
        let rig = try SlotRig()
        let slot = rig.put(true, UInt64(SlotRig.sectors) - 1, 0, 1024)
        _ = rig.publish()
        // Past the disk's end: answered without being carried out.
        try rig.takeAll()
        _ = try rig.wantKicks()
        #expect(rig.disk.inFlight.isEmpty)
        let other = rig.put(false, 0, 1)
        _ = rig.publish()
        try rig.takeAll()
        _ = rig.finish(0)
        #expect(try rig.take().map { $0 == .init(slot: slot ?? 0, isOK: false) } == true)
        #expect(try rig.take().map { $0 == .init(slot: other ?? 0, isOK: true) } == true)
        // A status that nobody has written is none either.
        _ = rig.put(false, 0, 1)
        _ = rig.publish()
        rig.forge(Self.bytes(0, 8), 4 + 2 * 8)
        rig.forge(Self.bytes(3, 2), 2)
        #expect(throws: SlotQueueFault.self) { try rig.take() }
    }

    @Test("kicks once for what is put while the device is awake, and again when it sleeps")
    func kicks() throws {
        let rig = try SlotRig()
        #expect(!rig.publish())
        _ = rig.put(false, 0, 0)
        #expect(rig.publish())
        _ = rig.put(false, 1, 0)
        #expect(!rig.publish(), "it has not asked again")
        try rig.takeAll()
        #expect(try !rig.wantKicks())
        _ = rig.put(false, 2, 0)
        #expect(rig.publish())
    }

    @Test("is called once after it has asked, and sees what came in between")
    func calls() throws {
        let rig = try SlotRig()
        for number: UInt64 in 0..<4 { _ = rig.put(false, number, 0) }
        _ = rig.publish()
        try rig.takeAll()
        #expect(!rig.wantCalls())
        #expect(rig.finish(0))
        #expect(!rig.finish(0), "it was called and has not asked again")
        #expect(rig.hasNext() && rig.wantCalls())
        while try rig.take() != nil {}
        #expect(!rig.hasNext() && !rig.wantCalls())
        #expect(rig.finish(0))
    }

    @Test("is of no use when the device does what none does")
    func hostile() throws {
        // More is done than was asked.
        for count in [1, 2, 171, 512, 65_535] {
            let rig = try SlotRig()
            if count > 1 { _ = rig.put(false, 0, 0) }
            _ = rig.publish()
            rig.forge(Self.bytes(UInt64(count), 2), 2)
            #expect(
                throws: SlotQueueFault.usedIndexJumped(
                    by: UInt16(count), inFlight: count > 1 ? 1 : 0)
            ) { try rig.take() }
        }
        // Something else is done than was asked.
        for head: UInt64 in [1, 2, 3, 509, 510, 511, 512, 65_536, 0xffff_ffff] {
            let rig = try SlotRig()
            #expect(rig.put(false, 0, 0) == 0)
            _ = rig.publish()
            rig.forge(Self.bytes(head, 8), 4)
            rig.forge(Self.bytes(1, 2), 2)
            #expect(throws: SlotQueueFault.strangeHead(UInt32(head))) { try rig.take() }
        }
        // The same is done twice.
        let rig = try SlotRig()
        _ = rig.put(false, 0, 0)
        _ = rig.put(false, 1, 1)
        _ = rig.publish()
        rig.forge(Self.bytes(0, 8) + Self.bytes(0, 8), 4)
        rig.forge(Self.bytes(2, 2), 2)
        #expect(try rig.take()?.slot == 0)
        #expect(throws: SlotQueueFault.strangeHead(0)) { try rig.take() }
    }

    @Test("survives any bytes in its memory", arguments: 1...40)
    func anyBytes(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        let rig = try SlotRig()
        var taken = 0
        var put = 0
        for _ in 0..<400 {
            if random.below(2) == 0, rig.put(random.below(2) == 0, 0, 0) != nil { put += 1 }
            _ = rig.publish()
            // Near its places, or anywhere.
            let offset =
                random.below(2) == 0
                ? random.below(2) == 0 ? 2 : UInt64(4 + 8 * random.below(8))
                : UInt64(random.below(4000))
            rig.forge(Self.bytes(UInt64(random.below(12)), 2), offset)
            do throws(SlotQueueFault) {
                while try rig.take() != nil { taken += 1 }
            } catch {
                break
            }
            _ = rig.wantCalls()
        }
        #expect(taken <= put && rig.memory.strays == 0)
    }
}
