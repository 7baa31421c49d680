import Testing
import UnitSupport
import VhostClient
import VhostProtocol

/// Chains as the guest may write them, right and wrong.
@Suite("Descriptor chains")
struct ChainTests {
    /// A descriptor as a test writes it.
    struct Raw: Sendable, Equatable {
        var address: UInt64
        var count: UInt32
        var flags: UInt16
        var next: UInt16

        var bytes: [UInt8] { little(address) + little(count) + little(flags) + little(next) }
    }

    private static let memoryBytes = 0x1000
    /// Where an indirect table lies.
    private static let tableAddress: UInt64 = 0x800

    /// Takes the chain at `head` out of a queue whose table is `table`.
    private static func take(
        _ table: [Raw], head: UInt16 = 0, indirect: [Raw] = [], hasIndirect: Bool = true,
        size: UInt16 = 4
    ) throws(VirtqueueFault) -> (chain: DescriptorChain, segments: [GuestSegment], strays: Int) {
        let memory = GuestArray(memoryBytes)
        let driver = DriverQueue(memory, size: size, at: 0, hasEventIndex: false)
        for (index, raw) in table.enumerated() { memory.write(raw.bytes, 16 * UInt64(index)) }
        for (index, raw) in indirect.enumerated() {
            memory.write(raw.bytes, tableAddress + 16 * UInt64(index))
        }
        memory.write(little(UInt16(1)) + little(head), driver.available + 2)
        let rig = try Rig(memory, driver, hasIndirect: hasIndirect)
        guard let chain = try rig.next() else { throw .availableIndex(next: 0, found: 0) }
        return (chain, rig.kept, memory.strays)
    }

    private static let write: UInt16 = 2
    private static let next: UInt16 = 1
    private static let table: UInt16 = 4

    @Test("every table of two descriptors is walked like by the specification's words")
    func exhaustive() throws {
        let addresses: [UInt64] = [0x400, 0xff0, .max]
        let counts: [UInt32] = [0, 1, 16, .max]
        let all = addresses.flatMap { address in
            counts.flatMap { count in
                (UInt16(0)..<4).flatMap { flags in
                    [UInt16(0), 1, 2, 9].map {
                        Raw(address: address, count: count, flags: flags, next: $0)
                    }
                }
            }
        }
        // Successors matter only where they are followed.
        let first = all.filter { $0.flags & 1 != 0 || $0.next == 0 }
        var faults = 0
        for one in first {
            for two in first where two.next < 2 || two.count == 16 {
                let expected = Self.oracle([one, two])
                do throws(VirtqueueFault) {
                    let taken = try Self.take([one, two], size: 2)
                    #expect(taken.strays == 0)
                    #expect(expected.fault == nil, "\(one) \(two)")
                    #expect(taken.chain.readableTotal == expected.readable)
                    #expect(taken.chain.writableTotal == expected.writable)
                    #expect(taken.chain.isWrong == expected.isOutside, "\(one) \(two)")
                } catch {
                    faults += 1
                    #expect(expected.fault == error, "\(one) \(two)")
                }
            }
        }
        #expect(faults > 1000)
    }

    private struct Expected {
        var readable: UInt64 = 0
        var writable: UInt64 = 0
        var isOutside = false
        var fault: VirtqueueFault?
    }

    /// What the specification makes of a table, as simply as it can be said.
    private static func oracle(_ table: [Raw]) -> Expected {
        var expected = Expected()
        var visited: Set<Int> = []
        var index = 0
        while true {
            guard visited.insert(index).inserted else {
                expected.fault = .chainTooLong(head: 0)
                return expected
            }
            let raw = table[index]
            let isInMemory =
                raw.address < UInt64(memoryBytes)
                && UInt64(raw.count) <= UInt64(memoryBytes) - raw.address
            if raw.count > 0 {
                if raw.flags & 2 != 0 {
                    expected.writable += UInt64(raw.count)
                } else if expected.writable > 0 {
                    expected.fault = .readableAfterWritable(head: 0)
                    return expected
                } else {
                    expected.readable += UInt64(raw.count)
                }
                if !isInMemory { expected.isOutside = true }
            }
            guard raw.flags & 1 != 0 else { return expected }
            guard raw.next < table.count else {
                expected.fault = .nextOutOfRange(head: 0, next: raw.next)
                return expected
            }
            index = Int(raw.next)
        }
    }

    /// A table, an indirect one, and the fault.
    struct Row: Sendable, CustomTestStringConvertible {
        let name: String
        let table: [Raw]
        var indirect: [Raw] = []
        var hasIndirect = true
        let fault: VirtqueueFault
        var testDescription: String { name }
    }

    private static func raw(
        _ flags: UInt16, next: UInt16 = 0, at address: UInt64 = 0x400, count: UInt32 = 16
    ) -> Raw {
        Raw(address: address, count: count, flags: flags, next: next)
    }

    private static let rows: [Row] = [
        Row(name: "a loop of one", table: [raw(next)], fault: .chainTooLong(head: 0)),
        Row(
            name: "a loop of four",
            table: [raw(next, next: 1), raw(next, next: 2), raw(next, next: 3), raw(next)],
            fault: .chainTooLong(head: 0)),
        Row(
            name: "a loop that leaves the head out",
            table: [raw(next, next: 1), raw(next, next: 2), raw(next, next: 1)],
            fault: .chainTooLong(head: 0)),
        Row(
            name: "a successor out of the table", table: [raw(next, next: 4)],
            fault: .nextOutOfRange(head: 0, next: 4)),
        Row(
            name: "a table that was not agreed on", table: [raw(4, at: tableAddress)],
            hasIndirect: false, fault: .indirectNotNegotiated(head: 0)),
        Row(
            name: "a table with a successor", table: [raw(5, next: 1, at: tableAddress), raw(0)],
            fault: .indirectMisplaced(head: 0)),
        Row(
            name: "a table in a table", table: [raw(4, at: tableAddress)],
            indirect: [raw(4, at: tableAddress)], fault: .indirectMisplaced(head: 0)),
        Row(
            name: "a table of no bytes", table: [raw(4, at: tableAddress, count: 0)],
            fault: .indirectLength(head: 0, 0)),
        Row(
            name: "half a descriptor", table: [raw(4, at: tableAddress, count: 24)],
            fault: .indirectLength(head: 0, 24)),
        Row(
            name: "a table of 1025", table: [raw(4, at: 0, count: 16 * 1025)],
            fault: .indirectLength(head: 0, 16 * 1025)),
        Row(
            name: "a table of all that fits 32 bits",
            table: [raw(4, at: tableAddress, count: 0xffff_fff0)],
            fault: .indirectLength(head: 0, 0xffff_fff0)),
        Row(
            name: "a table outside memory", table: [raw(4, at: 0x1000)],
            fault: .indirectOutsideMemory(head: 0)),
        Row(
            name: "a table that reaches out of memory", table: [raw(4, at: 0xff8)],
            fault: .indirectOutsideMemory(head: 0)),
        Row(
            name: "a table at the last address", table: [raw(4, at: .max)],
            fault: .indirectOutsideMemory(head: 0)),
        Row(
            name: "a loop in a table", table: [raw(4, at: tableAddress, count: 32)],
            indirect: [raw(next, next: 1), raw(next)], fault: .chainTooLong(head: 0)),
        Row(
            name: "a successor out of an indirect table",
            table: [raw(4, at: tableAddress, count: 32)], indirect: [raw(next, next: 2)],
            fault: .nextOutOfRange(head: 0, next: 2)),
        Row(
            name: "reading after writing", table: [raw(3, next: 1), raw(0)],
            fault: .readableAfterWritable(head: 0)),
    ]

    @Test("a chain that nobody can follow breaks its queue", arguments: rows)
    func faults(row: Row) {
        #expect(throws: row.fault) {
            _ = try Self.take(row.table, indirect: row.indirect, hasIndirect: row.hasIndirect)
        }
        #expect(!row.fault.text.isEmpty)
    }

    @Test("descriptors in front of a table belong to its chain")
    func directThenTable() throws {
        let taken = try Self.take(
            [Self.raw(1, next: 1), Self.raw(4, at: Self.tableAddress, count: 32)],
            indirect: [Self.raw(1, next: 1, at: 0x500), Self.raw(2, at: 0x600)])
        #expect(taken.chain.readableTotal == 32 && taken.chain.writableTotal == 16)
        #expect(taken.segments.count == 3)
    }

    @Test(
        "memory that changes with every look gives what is in memory, or a fault",
        arguments: 1...8)
    func changing(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        var carriedOut = 0
        for _ in 0..<400 {
            let memory = GuestArray(0x1000)
            var choices = SplitMix64(seed: random.next())
            memory.onAccess = { Self.change(memory, &choices) }
            for _ in 0..<100 { Self.change(memory, &choices) }
            let setup = QueueSetup(
                size: 8, base: 0,
                rings: RingAddresses(descriptors: 0, available: 0x80, used: 0xa0),
                hasEventIndex: choices.below(2) == 0, hasIndirectDescriptors: true)
            var queue = try Virtqueue(memory, setup)
            var disk = ModelDisk(sectors: 4)
            do throws(VirtqueueFault) {
                for _ in 0..<4 {
                    guard case .carryOut(let request) = try disk.take(&queue, memory) else {
                        continue
                    }
                    carriedOut += 1
                    #expect(request.offset + request.byteCount <= 4 * 512)
                    let segments = disk.inFlight.last?.segments ?? []
                    #expect(segments.allSatisfy { memory.contains($0) })
                    if request.command == .read || request.command == .write {
                        #expect(segments.reduce(0) { $0 + $1.byteCount } == request.byteCount)
                    }
                }
                while !disk.inFlight.isEmpty { disk.finish(0, &queue, memory) }
                _ = queue.publish(memory)
            } catch {}
            #expect(memory.strays == 0, "seed=\(seed)")
        }
        #expect(carriedOut > 15)
    }

    @Test("P6: a chain that is refused is not walked on through all regions of memory")
    func refusedWalk() throws {
        // Buffers of 4 KiB that cross 256 regions each.
        let memory = GuestArray([(0, 0x1000)] + (0..<256).map { (0x1000 + 16 * UInt64($0), 16) })
        let driver = DriverQueue(memory, size: 16, at: 0, hasEventIndex: false)
        for index: UInt16 in 0..<16 {
            let raw = Raw(
                address: index == 0 ? 1 << 40 : 0x1000, count: 0x1000, flags: index < 15 ? 3 : 2,
                next: index + 1)
            memory.write(raw.bytes, 16 * UInt64(index))
        }
        memory.write(little(UInt16(1)) + little(UInt16(0)), driver.available + 2)
        let rig = try Rig(memory, driver)
        var disk = ModelDisk(sectors: 8)
        let before = memory.lookups
        // It has a status byte, and so an answer.
        guard case .answer(let answer) = try rig.take(&disk) else {
            Issue.record("it is not refused")
            return
        }
        #expect(answer.result == .ioError)
        #expect(memory.lookups - before < 100, "\(memory.lookups - before) lookups")
    }

    /// Changes a descriptor, an available entry or a header to something that is nearly right.
    private static func change(_ memory: GuestArray, _ choices: inout SplitMix64) {
        switch choices.below(4) {
        case 0:
            let index = choices.below(8)
            let header: UInt64 = choices.below(2) == 0 ? 0x200 : 0x210
            var raw =
                switch index % 3 {
                case 0: Raw(address: header, count: 16, flags: 1, next: UInt16(index + 1))
                case 1:
                    Raw(
                        address: 0x400, count: choices.below(4) > 0 ? 512 : 16,
                        flags: choices.below(2) == 0 ? 1 : 3, next: UInt16(index + 1))
                default: Raw(address: 0x800, count: 1, flags: 2, next: 0)
                }
            switch choices.below(24) {
            case 0: raw.address = 0xfff
            case 1: raw.count = UInt32(choices.below(3)) * 700
            case 2: raw.flags = UInt16(choices.below(8))
            case 3: raw.next = UInt16(choices.below(10))
            case 4: raw = Raw(address: 0, count: 16 * 8, flags: 4, next: 0)
            default: break
            }
            memory.write(raw.bytes, 16 * UInt64(index))
        case 1:
            memory.write(little(UInt16(choices.below(8))), 0x82)
        case 2:
            memory.write(
                little(UInt16(choices.below(6) == 0 ? choices.below(8) : 3 * choices.below(3))),
                0x84 + 2 * UInt64(choices.below(8)))
        default:
            let types: [UInt32] = [0, 0, 1, 1, 4, 8, 11, 13]
            memory.write(
                little(types[choices.below(8)]) + little(UInt32(0))
                    + little(UInt64(choices.below(6))), 0x200 + 16 * UInt64(choices.below(2)))
        }
    }
}
