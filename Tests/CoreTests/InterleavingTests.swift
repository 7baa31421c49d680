import Core
import Foundation
import Testing

/// Every order of events of small cases: three clusters, two guest writes, backup reads, one or two
/// jobs.
///
/// A backup read changes nothing for anyone else, so what two of them can see is what one can see
/// at a time; one walk
/// has two all the same.
@Suite("Copy-before-write, every interleaving")
struct InterleavingTests {
    /// The largest walks are cut down to seconds unless `NBDPULL_WALK=full` asks for minutes.
    private static let isFull = ProcessInfo.processInfo.environment["NBDPULL_WALK"] == "full"

    private func walk(_ scenario: Scenario) throws {
        let walk = try Walk.all(scenario)
        #expect(walk.ends > 0, "the walk never came to an end")
    }

    @Test("P1: one job: every read gives the point in time")
    func oneJob() throws {
        try walk(Scenario())
    }

    @Test("P1: two reads at once")
    func twoReaders() throws {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 0..<2]
        scenario.readers = 2
        scenario.readRanges = [0..<1, 0..<2]
        try walk(scenario)
    }

    @Test("P1: two jobs, the second begun at any quiet moment, have each its own instant")
    func twoJobs() throws {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 1..<2, 0..<2]
        scenario.readRanges = [0..<1, 0..<2]
        scenario.jobs = [JobPlan(), JobPlan(beginsAtStart: false)]
        try walk(scenario)
    }

    @Test("P1: clusters of zeros, and writes that make zeros, cost no scratch and read back")
    func zeros() throws {
        var scenario = Scenario()
        scenario.content = [0, 2, 0]
        scenario.writeRanges = [0..<1, 0..<2, 1..<3]
        scenario.readRanges = [0..<1, 0..<3]
        scenario.writesZeros = true
        scenario.trouble = .holesAreNoted
        try walk(scenario)
    }

    @Test("P2: a source read fails")
    func sourceReadFails() throws {
        try walk(failing(.sourceReadFails))
    }

    @Test("P2: a scratch write fails, before or after it arrived")
    func scratchWriteFails() throws {
        try walk(failing(.scratchWriteFails))
    }

    @Test("P2: preserved content cannot be read back")
    func scratchReadFails() throws {
        try walk(failing(.scratchReadFails))
    }

    @Test("P2: two failures of any kind, two jobs")
    func twoFailures() throws {
        var scenario = failing([.sourceReadFails, .scratchWriteFails, .scratchReadFails])
        scenario.content = Self.isFull ? [1, 2] : [1]
        scenario.writeRanges = Self.isFull ? [0..<1, 0..<2] : [0..<1]
        scenario.readRanges = Self.isFull ? [0..<2] : [0..<1]
        scenario.failures = 2
        scenario.jobs = [JobPlan(), JobPlan()]
        try walk(scenario)
    }

    @Test("P2: scratch has room for one cluster, or for none", arguments: [UInt32(0), 1, 2])
    func scratchFull(slots: UInt32) throws {
        var scenario = failing([])
        scenario.jobs = [JobPlan(slotLimit: slots), JobPlan(beginsAtStart: false)]
        scenario.writeRanges = [0..<1, 0..<2]
        scenario.content = [1, 2]
        scenario.readRanges = [0..<2]
        try walk(scenario)
    }

    @Test("P2: the hold limit passes at any moment")
    func copyTimeout() throws {
        var scenario = failing([])
        scenario.ticks = 1
        scenario.jobs = [JobPlan(copyTimeoutNanoseconds: 5)]
        try walk(scenario)
    }

    @Test("P2: the hold limit of one of two jobs passes: the other stays whole")
    func copyTimeoutOfOne() throws {
        var scenario = failing([])
        scenario.content = [1, 2]
        scenario.writeRanges = Self.isFull ? [0..<1, 0..<2] : [0..<2]
        scenario.readRanges = [0..<2]
        scenario.ticks = 2
        scenario.jobs = [JobPlan(copyTimeoutNanoseconds: 15), JobPlan()]
        try walk(scenario)
    }

    @Test("P2: a job that begins behind a copy which hangs breaks at its own limit")
    func copyTimeoutBehindEarlierCopy() throws {
        var scenario = failing([])
        scenario.content = [1]
        scenario.writers = 1
        scenario.writesPerWriter = 2
        scenario.writeRanges = [0..<1]
        scenario.readers = 0
        scenario.ticks = 3
        scenario.jobs = [
            JobPlan(copyTimeoutNanoseconds: 5),
            JobPlan(beginsAtStart: false, copyTimeoutNanoseconds: 5),
        ]
        try walk(scenario)
    }

    @Test("P5: scratch loses what it took at any moment: reads give the point in time or an error")
    func scratchIsLost() throws {
        var scenario = failing(.scratchIsLost)
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 0..<2]
        scenario.readRanges = [0..<1, 0..<2]
        scenario.readsPerReader = Self.isFull ? 2 : 1
        try walk(scenario)
    }

    @Test("P5: a job ends at any moment, a later one takes its slot")
    func jobsEnd() throws {
        var scenario = failing(.jobsEnd)
        scenario.content = Self.isFull ? [1, 2] : [1]
        scenario.writeRanges = Self.isFull ? [0..<1, 0..<2] : [0..<1]
        scenario.readRanges = Self.isFull ? [0..<2] : [0..<1]
        scenario.jobs = [JobPlan(), JobPlan(beginsAtStart: false)]
        try walk(scenario)
    }

    @Test("P5: a job breaks and ends, a later one takes its slot")
    func brokenJobsEnd() throws {
        var scenario = failing([.jobsEnd, .sourceReadFails, .scratchWriteFails])
        scenario.content = [1]
        scenario.writeRanges = [0..<1]
        scenario.readRanges = [0..<1]
        scenario.writesPerWriter = Self.isFull ? 2 : 1
        scenario.jobs = [JobPlan(), JobPlan(beginsAtStart: false)]
        try walk(scenario)
    }

    @Test(
        "P5: a client lets go of clusters at any moment: reads give the point in time or an error")
    func clientReleases() throws {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 1..<2, 0..<2]
        scenario.readRanges = [0..<1, 0..<2]
        scenario.releaseRanges = [0..<1, 1..<2, 0..<2]
        scenario.releases = 2
        try walk(scenario)
    }

    @Test("P5: slots that are free again are used again, with scratch for one cluster")
    func slotsAreReused() throws {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 1..<2]
        scenario.readRanges = [0..<1, 1..<2]
        scenario.releaseRanges = [0..<1, 1..<2]
        scenario.releases = 2
        scenario.jobs = [JobPlan(slotLimit: 1)]
        try walk(scenario)
    }

    @Test("P1, P2: one job's client lets go, I/O fails, the other job stays as it is")
    func releasesBesideFailures() throws {
        var scenario = failing([.sourceReadFails, .scratchWriteFails, .jobsEnd])
        scenario.content = [1]
        scenario.writeRanges = [0..<1]
        scenario.readRanges = [0..<1]
        scenario.releaseRanges = [0..<1]
        scenario.releases = 1
        scenario.jobs = [JobPlan(), JobPlan(beginsAtStart: !Self.isFull)]
        try walk(scenario)
    }

    @Test("zeros and noted holes that a client lets go of are counted out again")
    func releasedZeros() throws {
        var scenario = Scenario()
        scenario.content = [0, 2]
        scenario.writeRanges = [0..<1, 0..<2]
        scenario.readRanges = [0..<2]
        scenario.releaseRanges = [0..<1, 0..<2]
        scenario.releases = 2
        scenario.writesZeros = true
        scenario.trouble = .holesAreNoted
        try walk(scenario)
    }

    private func failing(_ trouble: Trouble) -> Scenario {
        var scenario = Scenario()
        scenario.trouble = trouble
        scenario.readRanges = [0..<1, 0..<3]
        scenario.writeRanges = [0..<1, 0..<2, 1..<3]
        return scenario
    }
}

/// Wrong products that the same walk must find out; otherwise its silence would mean nothing.
@Suite("Copy-before-write, canaries")
struct InterleavingCanaryTests {
    @Test("a reader that looks before it reads is caught")
    func looksBefore() {
        var scenario = Scenario()
        scenario.readerRule = .looksBeforeReading
        #expect(throws: Violation.self) { try Walk.all(scenario) }
    }

    @Test("a reader that ignores a closed ledger is caught")
    func ignoresClosing() {
        var scenario = Scenario()
        scenario.readerRule = .ignoresClosing
        scenario.trouble = .sourceReadFails
        #expect(throws: Violation.self) { try Walk.all(scenario) }
    }

    @Test("a reader that trusts scratch that was given back is caught")
    func trustsScratch() {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 1..<2]
        scenario.readRanges = [0..<1, 1..<2]
        scenario.releases = 1
        scenario.releaseRanges = [0..<1, 1..<2]
        scenario.readerRule = .trustsScratch
        #expect(throws: Violation.self) { try Walk.all(scenario) }
    }

    @Test(
        "a reader that does not ask whether scratch was lost, or asks too early, is caught",
        arguments: [ReaderRule.trustsDevice, .asksDeviceTooEarly])
    func trustsDevice(rule: ReaderRule) {
        var scenario = Scenario()
        scenario.content = [1]
        scenario.writeRanges = [0..<1]
        scenario.readRanges = [0..<1]
        scenario.trouble = .scratchIsLost
        scenario.readerRule = rule
        #expect(throws: Violation.self) { try Walk.all(scenario) }
    }

    @Test("a write that passes without asking is caught")
    func passesUnasked() throws {
        let stage = try Stage(Scenario())
        var world = try stage.start()
        world.writes[0].clusters = 0..<1
        world.writes[0].phase = .waits
        #expect(throws: Violation.self) { try stage.letGo(0, in: &world) }
    }

    @Test("a counterexample names the events that lead to it")
    func counterexample() throws {
        var scenario = Scenario()
        scenario.readerRule = .looksBeforeReading
        let violation = #expect(throws: Violation.self) { try Walk.all(scenario) }
        let events = try #require(violation).events
        #expect(!events.isEmpty)
        // Played back alone the events give the same violation.
        let stage = try Stage(scenario)
        var world = try stage.start()
        #expect(throws: Violation.self) {
            for event in events { try stage.apply(event, to: &world) }
        }
    }
}
