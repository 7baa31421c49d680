import Core
import Foundation
import PointInTime
import Testing
import UnitSupport

/// Random walks through large cases; a seed decides everything.
///
/// A failure prints its seed and step; `NBDPULL_SEED=n` walks that seed alone.
@Suite("Copy-before-write, by seed")
struct SeededTests {
    private static let seeds: [UInt64] = {
        let given = ProcessInfo.processInfo.environment["NBDPULL_SEED"]
        if let seed = given.flatMap({ UInt64($0) }) { return [seed] }
        return Array(1...12)
    }()

    @Test("three jobs, 8 writers, 4 readers, failures", arguments: seeds)
    func ordinary(seed: UInt64) throws {
        var scenario = large(writers: 8, clusters: 256)
        scenario.failures = seed % 3 == 0 ? 0 : 3
        scenario.trouble = [
            .sourceReadFails, .scratchWriteFails, .scratchReadFails, .jobsEnd, .holesAreNoted,
        ]
        // The longest writes take two copies and more.
        try run(scenario, seed: seed, longestWrite: 2 * CopyBeforeWrite.clustersPerCopy)
    }

    @Test("more copies wanted than there may be: writes wait for a copy", arguments: seeds)
    func starved(seed: UInt64) throws {
        var scenario = large(writers: 64, clusters: 192)
        scenario.writesPerWriter = 30
        scenario.failures = seed % 2 == 0 ? 0 : 2
        scenario.trouble = [.sourceReadFails, .scratchWriteFails, .jobsEnd]
        let most = try run(scenario, seed: seed, longestWrite: 2)
        #expect(most == CopyBeforeWrite.copiesMax, "seed=\(seed): never short of copies")
    }

    @Test("little scratch and a hold limit", arguments: seeds)
    func scarce(seed: UInt64) throws {
        var scenario = large(writers: 8)
        scenario.ticks = 3
        scenario.jobs = [
            JobPlan(slotLimit: 20), JobPlan(beginsAtStart: false, copyTimeoutNanoseconds: 15),
            JobPlan(beginsAtStart: false),
        ]
        try run(scenario, seed: seed, longestWrite: 20)
    }

    @Test("clients that let go of clusters, scratch for a few", arguments: seeds)
    func releases(seed: UInt64) throws {
        var scenario = large(writers: 8)
        scenario.releases = 400
        scenario.writesPerWriter = 120
        scenario.failures = seed % 3 == 0 ? 2 : 0
        scenario.trouble = [.scratchWriteFails, .jobsEnd, .holesAreNoted]
        scenario.jobs = [
            JobPlan(slotLimit: 40), JobPlan(beginsAtStart: false, slotLimit: 50),
            JobPlan(beginsAtStart: false),
        ]
        try run(scenario, seed: seed, longestWrite: 20)
    }

    @Test("everything at once: begins, blocks, zeroing, the log, and failures", arguments: seeds)
    func everything(seed: UInt64) throws {
        var scenario = large(writers: 8)
        scenario.holds = true
        scenario.abandonedBegins = 3
        scenario.unaligned = seed % 2 == 0 ? nil : [0, 3, 5]
        scenario.zeroers = 4
        scenario.zeroingsPerZeroer = 25
        scenario.zeroingPlaces = 2
        scenario.isRecorded = true
        scenario.clearings = 60
        scenario.failures = seed % 3 == 0 ? 0 : 4
        scenario.trouble = [
            .sourceReadFails, .scratchWriteFails, .jobsEnd, .logFails, .syncFails, .markFails,
        ]
        try run(scenario, seed: seed, longestWrite: 12)
    }

    private func large(writers: Int, clusters: Int = 64) -> Scenario {
        var scenario = Scenario()
        scenario.content = (0..<clusters).map { $0 % 5 == 0 ? 0 : UInt16(5000 + $0) }
        scenario.writers = writers
        scenario.writesPerWriter = 100
        scenario.readers = 4
        scenario.readsPerReader = 200
        scenario.writesZeros = true
        scenario.jobs = [
            JobPlan(), JobPlan(beginsAtStart: false), JobPlan(beginsAtStart: false),
        ]
        return scenario
    }

    /// Walks until nothing more can happen; returns the most copies that were in flight at once.
    @discardableResult
    private func run(_ scenario: Scenario, seed: UInt64, longestWrite: Int) throws -> Int {
        var random = SplitMix64(seed: seed)
        let stage = try Stage(scenario)
        var world = try stage.start()
        var most = 0
        for step in 0..<200_000 {
            stage.scenario.writeRanges = [range(longestWrite, stage, &random)]
            stage.scenario.readRanges = [range(64, stage, &random)]
            stage.scenario.releaseRanges = [range(4, stage, &random)]
            stage.scenario.zeroRanges = [range(10, stage, &random)]
            guard let event = pick(stage, world, &random) else {
                #expect(step > 2000, "seed=\(seed): the walk ended after \(step) steps")
                #expect(world.isDrained && world.changes.copies.copiesInFlight == 0, "seed=\(seed)")
                #expect(world.writes.allSatisfy { $0.left == 0 }, "seed=\(seed)")
                return most
            }
            do {
                try stage.apply(event, to: &world)
            } catch {
                Issue.record("seed=\(seed) step=\(step) event=\(event): \(error.text)")
                return most
            }
            most = max(most, world.changes.copies.copiesInFlight)
        }
        Issue.record("seed=\(seed): the walk does not end")
        return most
    }

    private func range(
        _ longest: Int, _ stage: Stage, _ random: inout SplitMix64
    ) -> Range<Int> {
        let count = stage.geometry.clusterCount
        let first = random.below(count)
        return first..<min(count, first + 1 + random.below(longest))
    }

    /// Rare events are taken rarely, and writers pause when it is time for the next job.
    private func pick(_ stage: Stage, _ world: World, _ random: inout SplitMix64) -> Event? {
        let events = stage.events(in: world)
        guard !events.isEmpty else { return nil }
        // Every writer pauses while an unborn job's turn comes: after a third of the writes, and
        // after two thirds.
        let left = world.writes.reduce(0) { $0 + $1.left }
        let all = stage.scenario.writers * stage.scenario.writesPerWriter
        let born = world.jobs.count { $0.phase != .unborn }
        let isQuieting = born < world.jobs.count && left * 3 < all * (3 - born)
        for _ in 0..<20 {
            let event = events[random.below(events.count)]
            switch event {
            case .end, .scratchReadFails, .timePasses, .logIsOverdue, .logIsWritten(false),
                .nextMarkFails,
                .bitsAreSynced(false):
                if random.below(400) == 0 { return event }
            case .readFails, .saveFails, .hold:
                if random.below(100) == 0 { return event }
            case .clientReleases, .startClearing, .letGuestsGo:
                if random.below(20) == 0 { return event }
            case .submit:
                if !isQuieting { return event }
            case .begin:
                if isQuieting { return event }
            default: return event
            }
        }
        // Nothing that is left is ordinary.
        return events[random.below(events.count)]
    }
}
