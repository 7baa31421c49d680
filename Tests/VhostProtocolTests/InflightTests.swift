import Testing
import UnitSupport
import VhostClient
import VhostProtocol

/// A process that ends between any two stores, and the one that goes on after it.
@Suite("Requests in flight outlive the process")
struct InflightTests {
    private static let size: UInt16 = 8

    /// What is left when a process ends: the guest's memory, its driver, and the area.
    private struct World {
        let memory = GuestArray(0x10000)
        let driver: DriverQueue
        let area: GuestPlace
        /// Heads by the order in which the driver sent them.
        var sent: [UInt16] = []
        /// Heads that the driver got back.
        var returned: [UInt16] = []

        init(base: UInt16) {
            driver = DriverQueue(memory, size: InflightTests.size, at: 0, hasEventIndex: true)
            driver.begin(at: base)
            area = memory.addArea(16 + 16 * Int(InflightTests.size) + 48)
        }

        mutating func send(_ count: Int) {
            for index in 0..<count {
                let buffer = DriverBuffer(0x1000 + UInt64(index), 1, isWritable: true)
                if let head = driver.stage([buffer]) { sent.append(head) }
            }
            driver.publish()
        }

        /// A process that takes what there is and gives it back, in batches of so many.
        ///
        /// Its first `stores` stores reach memory. Returns the heads as it took them.
        mutating func live(stores: Int, backwards: Bool, batch: Int) throws -> [UInt16] {
            memory.storesLeft = stores
            defer { memory.storesLeft = .max }
            // A front-end that lost its back-end says what it can see: where the used ring is.
            let base = number(memory.read(driver.used + 2, 2), 0, as: UInt16.self)
            let rig = try Rig(memory, driver, base: base, area: area)
            var taken: [UInt16] = []
            while let chain = try rig.next() { taken.append(chain.head) }
            for (index, head) in (backwards ? taken.reversed() : taken).enumerated() {
                rig.complete(head)
                if (index + 1).isMultiple(of: batch) { _ = rig.publish() }
            }
            _ = rig.publish()
            return taken
        }

        /// Has all chains taken and given back in another order, so that later ones have heads in
        /// it.
        mutating func shuffle(_ random: inout SplitMix64) throws {
            send(8)
            let rig = try Rig(memory, driver, base: driver.collected, area: area)
            var heads: [UInt16] = []
            while let head = try rig.next()?.head { heads.append(head) }
            for head in heads.shuffled(using: &random) { rig.complete(head) }
            _ = rig.publish()
            try collect()
        }

        mutating func collect() throws {
            returned += try driver.collect().map { UInt16($0.id) }
        }
    }

    @Test(
        "P2: wherever the process ends, twice even, each request comes back exactly once",
        arguments: [0, 65_530])
    func everyStore(base: Int) throws {
        var ends = 0
        for batch in 1...3 {
            for backwards in [false, true] {
                for first in 0..<60 {
                    for second in [0, 1, 2, 3, 5, 8, 13, 21, 34, 60] {
                        var world = World(base: UInt16(base))
                        world.send(3)
                        _ = try world.live(stores: 10, backwards: false, batch: 1)
                        try world.collect()
                        world.send(2)
                        _ = try world.live(stores: first, backwards: backwards, batch: batch)
                        try world.collect()
                        world.send(1)
                        _ = try world.live(stores: second, backwards: backwards, batch: batch)
                        try world.collect()
                        _ = try world.live(stores: .max, backwards: false, batch: batch)
                        try world.collect()
                        #expect(
                            world.returned.count == world.sent.count,
                            "\(first) \(second) \(batch) \(backwards)")
                        #expect(world.driver.inFlight == 0 && world.memory.strays == 0)
                        ends += 1
                    }
                }
            }
        }
        #expect(ends == 3600)
    }

    @Test(
        "what was in flight is taken again in its old order, before anything new", arguments: 1...8)
    func order(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        for _ in 0..<50 {
            var world = World(base: UInt16(truncatingIfNeeded: random.next()))
            try world.shuffle(&random)
            world.send(8)
            var rig = try Rig(
                world.memory, world.driver, base: world.driver.collected, area: world.area)
            var taken: [UInt16] = []
            for _ in 0..<(2 + random.below(7)) {
                if let head = try rig.next()?.head { taken.append(head) }
            }
            // Some are given back, in any order, and the process ends, twice.
            for _ in 0..<random.below(taken.count) {
                rig.complete(taken.remove(at: random.below(taken.count)))
                if random.below(2) == 0 { _ = rig.publish() }
            }
            _ = rig.publish()
            for _ in 0..<2 {
                try world.collect()
                rig = try Rig(
                    world.memory, world.driver, base: world.driver.collected, area: world.area)
                var again: [UInt16] = []
                for _ in 0..<random.below(taken.count + 1) {
                    if let head = try rig.next()?.head { again.append(head) }
                }
                #expect(again == Array(taken.prefix(again.count)), "seed=\(seed)")
            }
            rig = try Rig(
                world.memory, world.driver, base: world.driver.collected, area: world.area)
            var all: [UInt16] = []
            while let head = try rig.next()?.head { all.append(head) }
            #expect(Array(all.prefix(taken.count)) == taken, "seed=\(seed)")
            #expect(all.count == world.driver.inFlight)
        }
    }

    @Test("a front-end that says another index than the area is not believed")
    func otherBase() throws {
        var world = World(base: 100)
        world.send(4)
        let rig = try Rig(world.memory, world.driver, base: 100, area: world.area)
        let first = try #require(try rig.next()?.head)
        let again = try Rig(world.memory, world.driver, base: 104, area: world.area)
        #expect(try again.next()?.head == first)
        var left = 0
        while try again.next() != nil { left += 1 }
        #expect(left == 3)
    }

    @Test("an area that says what cannot be breaks its queue, and nothing else")
    func wrongAreas() throws {
        // Offsets in the area: version 8, descriptors 10, last batch 12, used index 14, state of
        // head 0 16.
        let rows: [(name: String, bytes: [(Int, [UInt8])], fault: VirtqueueFault)] = [
            (
                "another version", [(8, [2, 0, 8, 0])],
                .inflightShape(version: 2, descriptors: 8)
            ),
            (
                "another size", [(8, [1, 0, 16, 0])],
                .inflightShape(version: 1, descriptors: 16)
            ),
            (
                "a batch larger than the queue", [(8, [1, 0, 8, 0, 0, 0, 0x80, 0]), (16, [1])],
                .inflightIndex(area: 128, used: 0)
            ),
            (
                "a batch that begins nowhere", [(8, [1, 0, 8, 0, 8, 0, 0xff, 0xff]), (16, [1])],
                .inflightHead(8)
            ),
            (
                "a batch that goes on nowhere",
                [(8, [1, 0, 8, 0, 0, 0, 0xfe, 0xff]), (16, [1]), (22, [0xff, 0xff])],
                .inflightHead(65_535)
            ),
        ]
        for row in rows {
            let world = World(base: 0)
            for (offset, bytes) in row.bytes {
                for (index, byte) in bytes.enumerated() {
                    world.memory.store8(byte, world.area.advanced(by: UInt64(offset + index)))
                }
            }
            #expect(throws: row.fault, "\(row.name)") {
                _ = try Rig(world.memory, world.driver, area: world.area)
            }
        }
    }

    @Test("an area of random bytes never traps", arguments: 1...4)
    func garbage(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        var opened = 0
        for _ in 0..<2000 {
            var world = World(base: 0)
            world.send(random.below(8))
            for offset in 8..<144 where random.below(2) == 0 {
                world.memory.store8(
                    UInt8(random.below(random.below(2) == 0 ? 4 : 256)),
                    world.area.advanced(by: UInt64(offset)))
            }
            world.memory.store16(1, world.area.advanced(by: 8))
            world.memory.store16(8, world.area.advanced(by: 10))
            do throws(VirtqueueFault) {
                let rig = try Rig(world.memory, world.driver, area: world.area)
                opened += 1
                while let chain = try rig.next() { rig.complete(chain.head) }
                _ = rig.publish()
            } catch {}
            #expect(world.memory.strays == 0, "seed=\(seed)")
        }
        #expect(opened > 10)
    }
}
