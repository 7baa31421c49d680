import SystemLayer
import Testing
import Tracking
import TrackingFiles

/// What a disk's tracking makes of a disk that is another one than before.
@Suite struct TrackingSourceTests {
    private func oneCheckpoint(sizeBytes: UInt64) throws -> TrackingWorld {
        let world = try TrackingWorld(sizeBytes: sizeBytes)
        try world.checkpoint()
        try world.change(2..<4)
        try world.checkpoint()
        try world.change(1..<2)
        return world
    }

    @Test(
        "what a disk grew by is dirty, the block at its old end too",
        arguments: [64 << 16, (64 << 16) + 1, (70 << 16) - 512] as [UInt64], [false, true])
    func grown(sizeBytes: UInt64, cleanly: Bool) throws {
        let world = try oneCheckpoint(sizeBytes: sizeBytes)
        if cleanly { try world.stopCleanly() } else { world.kill() }
        world.source.sizeBytes = (200 << 16) + 7
        try world.open()
        let edge = Int(sizeBytes >> 16)
        for index in world.oracle.indices {
            var blocks = world.oracle[index].blocks.widened(to: world.blockCount)
            blocks.mark(edge..<world.blockCount)
            world.oracle[index].blocks = blocks
        }
        #expect(try world.wrongAnswers().isEmpty)
        #expect(try world.current().problem == nil)
        try world.change(world.blockCount - 1..<world.blockCount)
        try world.checkpoint()
        try world.delete("c2")
        #expect(try world.wrongAnswers().isEmpty)
        try world.stopCleanly()
        try world.open()
        #expect(try world.wrongAnswers().isEmpty)
    }

    @Test("a growth that was cut off and taken back changes nothing")
    func growthTakenBack() throws {
        let world = try oneCheckpoint(sizeBytes: 100 << 16)
        let size = world.source.sizeBytes
        let record = try world.read("record")
        let name = "layer-\(try world.current().recording.serial).bits"
        let bits = try world.read(name)
        world.kill()
        world.source.sizeBytes = 5000 << 16
        try world.open()
        world.kill()
        let longer = try world.read(name)
        #expect(longer.count > bits.count)
        try world.write("record", record)
        try world.write(name, bits + [UInt8](repeating: 0, count: longer.count - bits.count))
        world.source.sizeBytes = size
        try world.open()
        // The longer disk's session was the last, and its record is gone: nothing is missed.
        #expect(try world.wrongAnswers(allowing: world.everyBlock()).isEmpty)
    }

    @Test("another file, a smaller one or one of another path gives the chain up, with a reason")
    func anotherSource() throws {
        let changes: [(String, (inout SourceIdentity) -> Void)] = [
            ("has shrunk from 6553600 to 6488064 bytes", { $0.sizeBytes -= 65_536 }),
            ("another file now ('/other.img', before '/disk.img')", { $0.path = "/other.img" }),
            ("another file now", { $0.inode += 1 }),
        ]
        for (text, change) in changes {
            for cleanly in [false, true] {
                let world = try oneCheckpoint(sizeBytes: 100 << 16)
                if cleanly { try world.stopCleanly() } else { world.kill() }
                change(&world.source)
                try world.open()
                let store = try world.current()
                #expect(store.problem?.contains(text) == true, "\(store.problem ?? "none")")
                #expect(store.record.chain.checkpoints.isEmpty)
                world.oracle = []
                try world.checkpoint()
                try world.change(9..<10)
                #expect(try world.wrongAnswers().isEmpty)
            }
        }
    }

    @Test("a disk that was changed while the server was stopped is all dirty")
    func changedWhileStopped() throws {
        let world = try oneCheckpoint(sizeBytes: 100 << 16)
        try world.stopCleanly()
        world.source.changedNanoseconds += 1
        try world.open()
        #expect(try world.answer("c1") == world.everyBlock())
        #expect(try world.answer("c2") == world.everyBlock())
        #expect(try world.current().recoveredBytes > 0)
        try world.checkpoint()
        #expect(try world.answer("c3").dirtyCount == 0)
    }

    @Test("a kill says nothing about the time of change: the bits are exact")
    func changedTimeAfterKill() throws {
        let world = try oneCheckpoint(sizeBytes: 100 << 16)
        world.kill()
        world.source.changedNanoseconds += 1
        try world.open()
        #expect(try world.wrongAnswers().isEmpty)
    }

    @Test("P3: a disk that lost writes while nobody served it is not opened with its checkpoints")
    func lostMeanwhile() throws {
        func open(_ world: TrackingWorld) throws -> TrackingStore {
            try TrackingStore.open(
                world.places, source: world.source,
                granularityBytes: TrackingWorld.granularityBytes, earlierLoss: Errno.io)
        }
        for cleanly in [false, true] {
            let world = try oneCheckpoint(sizeBytes: 100 << 16)
            if cleanly { try world.stopCleanly() } else { world.kill() }
            let record = try world.read("record")
            #expect(throws: TrackingFault.sourceLost(errno: Errno.io)) { try open(world) }
            #expect(try world.read("record") == record, "who opens it says so")
        }
        // Nothing depends on what was recorded so far.
        let fresh = try TrackingWorld(sizeBytes: 100 << 16)
        fresh.kill()
        #expect(try open(fresh).record.chain.checkpoints.isEmpty)
    }

    @Test("P3: a log marks everything unless a clean stop has synced the disk before")
    func unsynced() throws {
        func marks(_ world: TrackingWorld) -> [Range<UInt64>] {
            IntentLogFile.markedRanges(in: world.places.files) ?? []
        }
        let world = try oneCheckpoint(sizeBytes: 100 << 16)
        #expect(try world.current().log.isAllMarked && !marks(world).isEmpty)
        world.kill()
        try world.open()
        let isAllMarked = try world.current().log.isAllMarked
        #expect(isAllMarked && marks(world).contains { $0.contains(0) })
        // Power goes before the disk has the blocks that the last backup has read from memory.
        try world.losePower()
        try world.open()
        #expect(try world.answer("c2") == world.everyBlock())
        try world.stopCleanly()
        try world.open()
        #expect(try !world.current().log.isAllMarked && marks(world).isEmpty)
    }

    @Test("a path of any characters survives in the record")
    func paths() throws {
        for path in ["/a b", "/a\nb\r", "/a\\n", "/\u{301}e", "/crc 1\n", "/a\r\nlayer 9 x"] {
            let record = TrackingRecord(
                source: SourceIdentity(
                    path: path, sizeBytes: 1, inode: 2, changedNanoseconds: 3),
                granularityBytes: 65_536, bootID: "b", isClean: true, chain: LayerChain())
            #expect(TrackingRecord.decode(record.encode()) == record)
        }
    }

    @Test("a new granularity is taken up while there is no checkpoint, and not after")
    func granularity() throws {
        let world = try TrackingWorld(sizeBytes: 100 << 16)
        world.kill()
        func open(_ bytes: UInt32) throws -> UInt32 {
            try TrackingStore.open(
                world.places, source: world.source, granularityBytes: bytes
            ).record.granularityBytes
        }
        #expect(try open(1 << 17) == 1 << 17)
        #expect(try open(1 << 16) == 1 << 16)
        try world.open()
        try world.checkpoint()
        world.kill()
        #expect(try open(1 << 17) == 1 << 16)
    }

    @Test("deleting the last checkpoint and making one again stays exact, with no leftovers")
    func tidy() throws {
        let world = try TrackingWorld(sizeBytes: 100 << 16)
        for round in 0..<3 {
            let first = try world.checkpoint()
            try world.change(round..<round + 1)
            let second = try world.checkpoint()
            try world.change(50..<51)
            #expect(try world.wrongAnswers().isEmpty)
            try world.delete(first)
            try world.delete(second)
            try world.current().compressSealed()
            #expect(StateFiles.names(in: world.directory).sorted().count == 3)
        }
        #expect(throws: TrackingFault.unknownCheckpoint("c1")) { try world.delete("c1") }
    }

    @Test("a mapped layer that could not be removed never replaces a compressed one")
    func staleMappedLayer() throws {
        let world = try oneCheckpoint(sizeBytes: 100 << 16)
        try world.checkpoint()
        let name = "layer-\(try world.current().record.chain.layers[0].serial).bits"
        let stale = try world.read(name)
        try world.delete("c2")
        #expect(!StateFiles.names(in: world.directory).contains(name))
        try world.write(name, stale)
        #expect(try world.wrongAnswers().isEmpty)
        try world.current().compressSealed()
        #expect(try world.wrongAnswers().isEmpty)
        #expect(!StateFiles.names(in: world.directory).contains(name))
    }
}
