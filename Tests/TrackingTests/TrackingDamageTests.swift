import SystemLayer
import Testing
import Tracking
import TrackingFiles

/// Tracking files that are damaged, missing or of another disk: more is dirty, never less.
@Suite struct TrackingDamageTests {
    /// Checkpoints c1 and c2 with changes since each.
    private func twoCheckpoints(sizeBytes: UInt64 = 6 << 27) throws -> TrackingWorld {
        let world = try TrackingWorld(sizeBytes: sizeBytes)
        try world.change(1..<3)
        try world.checkpoint()
        try world.change(10..<20)
        try world.checkpoint()
        try world.change(40..<41)
        return world
    }

    private func everythingIsDirty(_ world: TrackingWorld) throws -> Bool {
        let names = try world.current().record.chain.checkpoints
        guard names == ["c1", "c2"] else { return false }
        return try names.allSatisfy { try world.answer($0) == world.everyBlock() }
    }

    /// The chain was given up with a reason, and a new one works.
    private func expectGivenUp(_ world: TrackingWorld, says text: String) throws {
        let store = try world.current()
        #expect(store.record.chain.checkpoints.isEmpty)
        #expect(store.problem?.contains(text) == true, "problem: \(store.problem ?? "none")")
        #expect(throws: TrackingFault.unknownCheckpoint("c1")) { try world.answer("c1") }
        world.oracle = []
        try world.change(5..<6)
        let name = try world.checkpoint()
        try world.change(7..<9)
        #expect(try world.wrongAnswers().isEmpty)
        try world.delete(name)
        world.kill()
        try world.open()
        #expect(try world.current().problem == nil)
    }

    @Test("a record that is torn at any byte, or has any byte altered, gives the chain up")
    func damagedRecord() throws {
        let world = try twoCheckpoints()
        let whole = try world.read("record")
        #expect(TrackingRecord.decode(whole) == (try world.current().record))
        for length in 0..<whole.count {
            #expect(TrackingRecord.decode(Array(whole.prefix(length))) == nil, "\(length) bytes")
        }
        for index in whole.indices {
            var altered = whole
            altered[index] ^= 1
            #expect(TrackingRecord.decode(altered) == nil, "byte \(index)")
        }
        world.kill()
        try world.write("record", Array(whole.dropLast(9)))
        try world.open()
        try expectGivenUp(world, says: "/record' is damaged")
    }

    @Test("a missing record gives the chain up, and its files are not taken for new ones")
    func missingRecord() throws {
        let world = try twoCheckpoints()
        let serial = try world.current().recording.serial
        world.kill()
        try world.remove("record")
        try world.open()
        #expect(try world.current().recording.serial > serial)
        #expect(try world.current().recording.dirtyCount == 0)
        try expectGivenUp(world, says: "/record' is missing")
    }

    @Test("giving tracking up survives a restart")
    func givenUp() throws {
        let world = try twoCheckpoints()
        let outcome = TrackingDoubt(world.places, spare: SpareDescriptor()).declare()
        #expect(outcome.isDurable && outcome.isSaid && outcome.failures.isEmpty)
        world.kill()
        try world.open()
        try expectGivenUp(world, says: "/record' is missing")
    }

    @Test(
        "a kill while a sync hangs leaves every block dirty, one after its end leaves the bits exact",
        arguments: [true, false])
    func hungSync(hangs: Bool) throws {
        let world = try twoCheckpoints()
        let doubt = TrackingDoubt(world.places, spare: SpareDescriptor())
        doubt.prepare(try world.current())
        let dirty = try world.current().recording.dirtyCount
        doubt.say(syncHangs: true)
        if !hangs { doubt.say(syncHangs: false) }
        world.kill()
        try world.open()
        let store = try world.current()
        #expect(store.record.chain.checkpoints.count == 2)
        #expect(store.recording.dirtyCount == (hangs ? world.blockCount : dirty))
        #expect((store.problem?.contains("a sync of it had not ended") ?? false) == hangs)
    }

    @Test("that changes are not recorded is not taken back by the end of a sync")
    func untrackedStays() throws {
        let world = try twoCheckpoints()
        let doubt = TrackingDoubt(world.places, spare: SpareDescriptor())
        doubt.prepare(try world.current())
        doubt.say(syncHangs: true)
        #expect(doubt.sayInMemory())
        doubt.say(syncHangs: false)
        world.kill()
        try world.open()
        #expect(try world.current().recording.dirtyCount == world.blockCount)
    }

    enum Damage: String, CaseIterable, Sendable {
        case missing, empty, truncated, header, otherLayer
    }

    private func damage(_ world: TrackingWorld, _ name: String, _ damage: Damage) throws {
        var bytes = try world.read(name)
        switch damage {
        case .missing: return try world.remove(name)
        case .empty: bytes = []
        case .truncated: bytes.removeLast(8)
        case .header: bytes.replaceSubrange(0..<8, with: repeatElement(0, count: 8))
        case .otherLayer:
            let text = String(decoding: bytes.prefix(17), as: UTF8.self)
            guard let space = text.utf8.lastIndex(of: UInt8(ascii: " ")) else { return }
            let index = text.utf8.distance(from: text.utf8.startIndex, to: space) - 1
            bytes[index] ^= 1
        }
        try world.write(name, bytes)
    }

    @Test("a damaged recording layer makes every block dirty", arguments: Damage.allCases)
    func damagedRecording(kind: Damage) throws {
        let world = try twoCheckpoints()
        let name = "layer-\(try world.current().recording.serial).bits"
        try world.stopCleanly()
        try damage(world, name, kind)
        try world.open()
        #expect(try everythingIsDirty(world))
        let store = try world.current()
        #expect(store.problem?.contains("/\(name)'") == true, "\(store.problem ?? "none")")
        #expect(store.recoveredBytes > 0)

        // It stays so, and a new checkpoint is exact again.
        world.kill()
        try world.open()
        #expect(try everythingIsDirty(world))
        try world.checkpoint()
        try world.change(3..<4)
        var expected = DirtyBitmap(blockCount: world.blockCount)
        expected.mark(3..<4)
        #expect(try world.answer("c3") == expected)
    }

    @Test("a damaged sealed layer is named, and newer checkpoints work", arguments: Damage.allCases)
    func damagedSealed(kind: Damage) throws {
        let world = try twoCheckpoints()
        guard let serial = try world.current().record.chain.serials(since: "c1")?.first else {
            throw TrackingWorld.Failure.message("no layer")
        }
        try damage(world, "layer-\(serial).bits", kind)
        try expectDamaged(world, file: "layer-\(serial).bits")
    }

    @Test("a compressed layer with any damage is named, and newer checkpoints work")
    func damagedCompressed() throws {
        let world = try twoCheckpoints()
        guard let serial = try world.current().record.chain.serials(since: "c1")?.first else {
            throw TrackingWorld.Failure.message("no layer")
        }
        try world.current().compressSealed()
        let name = "layer-\(serial).z"
        let whole = try world.read(name)
        #expect(!FileCalls.exists(world.directory + "/layer-\(serial).bits"))
        for index in [0, 9, 14, 20, 26, 36, 57, 63, 64, whole.count - 1] {
            var bytes = whole
            bytes[index] ^= 4
            try world.write(name, bytes)
            try expectDamaged(world, file: name)
        }
        try world.write(name, [])
        try expectDamaged(world, file: name)
        try world.remove(name)
        try expectDamaged(world, file: "layer-\(serial).bits")
    }

    private func expectDamaged(_ world: TrackingWorld, file: String) throws {
        for _ in 0..<2 {
            do {
                _ = try world.answer("c1")
                Issue.record("\(file) is damaged and was read")
            } catch TrackingFault.damagedLayer(let path, _) {
                #expect(path == world.directory + "/" + file)
            }
            #expect(try world.answer("c2") == world.oracle[1].blocks)
            world.kill()
            try world.open()
        }
    }

    @Test("after a loss of power without a usable log every block is dirty", arguments: [0, 1, 2])
    func damagedLog(kind: Int) throws {
        let world = try twoCheckpoints()
        world.kill()
        world.bootID = "another boot"
        switch kind {
        case 0: try world.remove("intent")
        case 1: try world.write("intent", [])
        default: try world.write("intent", [UInt8](repeating: 0, count: 8192))
        }
        try world.open()
        #expect(try everythingIsDirty(world))
    }

    @Test("without a boot id every unclean stop counts as a loss of power")
    func unknownBoot() throws {
        let world = try twoCheckpoints()
        world.kill()
        world.bootID = ""
        try world.open()
        world.kill()
        try world.remove("intent")
        try world.open()
        #expect(try everythingIsDirty(world))
    }

    @Test("what was being written when the process died goes with the next start")
    func leftovers() throws {
        let world = try twoCheckpoints()
        world.kill()
        let names = ["layer-1.bits.new", "layer-9.z.new", "record.new", "intent.new"]
        for name in names { try world.write(name, [1, 2, 3]) }
        try world.open()
        #expect(names.filter(world.exists).isEmpty)
        #expect(try world.wrongAnswers().isEmpty)
    }
}
