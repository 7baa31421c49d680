import Testing
import TrackingFiles
import UnitSupport

/// Every answer of a disk's tracking, through stops of every kind, against an oracle.
@Suite struct TrackingStoreTests {
    @Test(
        "clean stops and kills keep every answer exact, power loss adds no more than the log marks",
        arguments: TrackingSeeds.all)
    func walk(seed: UInt64) throws {
        var generator = SplitMix64(seed: seed)
        let world = try TrackingWorld()
        for step in 0..<50 {
            for _ in 0..<generator.below(6) { try world.changeSomewhere(&generator) }
            let event = generator.below(12)
            switch event {
            case 0, 1, 2: try world.checkpoint()
            case 3, 4: try deleteSomething(world, &generator)
            case 5: try current(world).compressSealed()
            case 6: try world.clearLog()
            case 7:
                try world.stopCleanly()
                try world.open()
                #expect(try current(world).recoveredBytes == 0)
            case 8:
                world.kill()
                try world.open()
            case 9: try interruptSeal(world, &generator)
            case 10: try interruptDelete(world, &generator)
            default: try losePower(world)
            }
            let wrong = try world.wrongAnswers()
            #expect(wrong.isEmpty, "seed \(seed), step \(step), event \(event): \(wrong)")
            #expect(try current(world).problem == nil)
            if !wrong.isEmpty { return }
        }
    }

    private func current(_ world: TrackingWorld) throws -> TrackingStore { try world.current() }

    private func deleteSomething(_ world: TrackingWorld, _ generator: inout SplitMix64) throws {
        guard !world.oracle.isEmpty else { return }
        try world.delete(world.oracle[generator.below(world.oracle.count)].name)
    }

    private func losePower(_ world: TrackingWorld) throws {
        let extra = world.markedBlocks()
        try world.losePower()
        try world.open()
        let wrong = try world.wrongAnswers(allowing: extra)
        #expect(wrong.isEmpty, "after the loss of power: \(wrong)")
        try world.accept()
    }

    /// The process dies after the instant of a checkpoint: before its record, or after.
    private func interruptSeal(_ world: TrackingWorld, _ generator: inout SplitMix64) throws {
        var sealing = try current(world)
        let next = try sealing.prepareNext()
        for _ in 0..<3 { try world.changeSomewhere(&generator, in: next) }
        if generator.below(2) == 0 {
            // The record was not written, but what it was to replace is still there.
            let files = try world.files()
            try sealing.seal(checkpoint: world.freshName(), next: next)
            world.kill()
            for (name, bytes) in files where name == "record" || !world.exists(name) {
                try world.write(name, bytes)
            }
        } else {
            world.kill()
        }
        try world.open()
    }

    /// The process dies in a deletion: with the bits moved and the old record, or the files left.
    private func interruptDelete(_ world: TrackingWorld, _ generator: inout SplitMix64) throws {
        guard !world.oracle.isEmpty else { return }
        let index = generator.below(world.oracle.count)
        let doomed = world.oracle[index]
        let parent = index > 0 ? world.oracle[index - 1].blocks : doomed.blocks
        if generator.below(2) == 0 { try current(world).compressSealed() }
        let files = try world.files()
        let recording = "layer-\(try current(world).recording.serial).bits"
        try world.delete(doomed.name)
        let keepsRecord = generator.below(2) == 0
        world.kill()
        for (name, bytes) in files where name != recording {
            if (name == "record" && !keepsRecord) || !world.exists(name) {
                try world.write(name, bytes)
            }
        }
        try world.open()
        guard !keepsRecord else {
            try current(world).compressSealed()
            return
        }
        world.oracle.insert(doomed, at: index)
        let wrong = try world.wrongAnswers().filter { $0 != doomed.name }
        #expect(wrong.isEmpty, "deletion of \(doomed.name) that was cut off: \(wrong)")
        #expect(try world.wrongAnswers(allowing: parent).isEmpty)
        try world.accept()
    }

}
