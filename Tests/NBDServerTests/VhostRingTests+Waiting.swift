import Testing
import VhostClient

@testable import NBDServer

/// When requests are handed over, and what a ring does before it sleeps.
extension VhostRingTests {
    /// A place for a request whose data begins at a multiple of 4 KiB.
    private static func place(_ index: Int) -> UInt64 { 0x10000 + UInt64(index) * 0x2000 - 16 }

    @Test(
        "past the page cache a disk gets the first request at once, and then batches",
        arguments: [true, false])
    func handsOver(reads: Bool) throws {
        var loop = try loop(export(alignment: 4096))
        let guest = try StubFrontEnd(world, size: 64)
        guest.start(&loop)
        world.submits = []
        let requests = (0..<14).map { index in
            guest.put(
                reads
                    ? .read(UInt64(index) * 8, sectors: 8)
                    : .write(UInt64(index) * 8, [UInt8](repeating: UInt8(index), count: 4096)),
                at: Self.place(index))
        }
        loop.turn()
        let first = try #require(world.submits.first)
        #expect(world.submits.map { $0 - first + 1 } == [1, 2, 4, 8, 12])
        settle(&loop)
        #expect(requests.allSatisfy { $0.status(guest.memory) == 0 })
    }

    @Test("what the page cache answers is not handed over in the midst of a turn")
    func keepsTogether() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world, size: 64)
        guest.start(&loop)
        guest.queue.suppressCalls()
        world.submits = []
        let requests = (0..<14).map { index in
            guest.put(.read(UInt64(index) * 8, sectors: 8), at: Self.place(index))
        }
        loop.turn()
        #expect(requests.allSatisfy { $0.status(guest.memory) == 0 })
        #expect(world.submits == [])
    }

    @Test("P3: a queue that always has large reads does not keep the others waiting")
    func queuesInTurn() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        let second = guest.startSecond(at: 0x8000, &loop)
        let large = DriverRequest.read(0, sectors: 1200).place(guest.memory, at: 0x10000)
        for _ in 0..<4 { _ = second.stage(large.buffers) }
        second.publish()
        loop.turn()
        let small = guest.put(.read(8, sectors: 8), at: 0xB0000)
        var turns = 0
        while try guest.queue.collect().isEmpty, turns < 100 {
            for _ in try second.collect() { _ = second.stage(large.buffers) }
            second.publish()
            loop.turn()
            turns += 1
        }
        #expect(turns < 10, "\(turns) turns")
        #expect(small.status(guest.memory) == 0)
    }

    @Test("P3: a front-end's turn ends with the bytes that it moves, however they are moved")
    func bytesOfTurn() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world, size: 64)
        guest.start(&loop)
        guest.queue.suppressCalls()
        // Too large to be answered at once, too small to be more than a turn's worth.
        let large = DriverRequest.read(0, sectors: 1000).place(guest.memory, at: 0x10000)
        for _ in 0..<16 { _ = guest.queue.stage(large.buffers) }
        guest.queue.publish()
        loop.turn()
        #expect(try guest.queue.collect().count == 2)
        settle(&loop)
        #expect(try guest.queue.collect().count == 14)
    }

    @Test("a guest that was called and goes on at once needs no kick")
    func goesOn() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        _ = guest.put(.read(0, sectors: 1))
        loop.turn()
        #expect(guest.queue.hasUsed)
        var next: DriverPlacement?
        world.onSubmit = { [world] in
            world.onSubmit = {}
            next = guest.put(.read(1, sectors: 1))
        }
        let wentOn = loop.letGuestsGoOn()
        #expect(wentOn)
        loop.turn()
        #expect(try #require(next).status(guest.memory) == 0)
        // It is called again, and has nothing more; then nobody was called.
        let hasMore = loop.letGuestsGoOn()
        #expect(!hasMore)
        let submits = world.submits.count
        let isAgain = loop.letGuestsGoOn()
        #expect(!isAgain && world.submits.count == submits)
    }

    /// Puts so many reads into the queue and gives the ring a turn; whether it may look for their
    /// answer then.
    private func mayLook(
        _ reads: Int, _ guest: StubFrontEnd, _ loop: inout RingLoop<StubIO>
    ) throws -> Bool {
        for index in 0..<reads {
            _ = guest.put(.read(UInt64(index), sectors: 1), at: Self.place(index))
        }
        loop.turn()
        let mayLook = loop.waitsForPollersDisk
        settle(&loop)
        #expect(try guest.queue.collect().count == reads)
        return mayLook
    }

    @Test("a ring may look for a disk's answers while they are all that guests who poll wait for")
    func waitsForPollers() throws {
        var loop = try loop(export(alignment: 512))
        let guest = try StubFrontEnd(world, size: 64)
        guest.start(&loop)
        guest.queue.suppressCalls()
        for _ in 0..<Limits.answersOfPoller {
            let isEarly = try mayLook(1, guest, &loop)
            #expect(!isEarly)
        }
        var found: [Bool] = []
        for reads in [1, 2, 1] { found.append(try mayLook(reads, guest, &loop)) }
        // One answer that a call is wanted for, and it counts as a guest that sleeps.
        guest.queue.wantCalls()
        found.append(try mayLook(1, guest, &loop))
        guest.queue.suppressCalls()
        found.append(try mayLook(1, guest, &loop))
        #expect(found == [true, true, true, true, false])
    }
}
