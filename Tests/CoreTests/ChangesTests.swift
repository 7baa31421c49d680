import Core
import Testing

/// Every order of events on all gates of a change: begins that hold guests, copies, blocks that
/// writes share, the write-intent log, zeroing step by step.
@Suite("Changes of a disk, every interleaving")
struct ChangesTests {
    private func walk(_ scenario: Scenario) throws {
        let walk = try Walk.all(scenario)
        #expect(walk.ends > 0, "the walk never came to an end")
    }

    @Test("P1: a job begins at any moment, or its begin is given up: its instant is quiet")
    func begins() throws {
        var scenario = Scenarios.small
        scenario.holds = true
        scenario.abandonedBegins = 1
        scenario.writers = 2
        scenario.readers = 1
        try walk(scenario)
    }

    @Test("P1: two jobs begin at any moments, I/O fails")
    func twoBegins() throws {
        var scenario = Scenarios.small
        scenario.content = [1]
        scenario.writeRanges = [0..<1]
        scenario.readRanges = [0..<1]
        scenario.holds = true
        scenario.jobs = [JobPlan(beginsAtStart: false), JobPlan(beginsAtStart: false)]
        scenario.readers = 1
        scenario.trouble = [.sourceReadFails, .scratchWriteFails]
        try walk(scenario)
    }

    @Test("P3: the power may be cut in every state; the log fails, hangs and is cleared")
    func recorded() throws {
        var scenario = Scenarios.small
        scenario.jobs = []
        scenario.isRecorded = true
        scenario.writesPerWriter = 2
        scenario.clearings = 2
        scenario.failures = 2
        scenario.trouble = [.logFails, .syncFails]
        try walk(scenario)
    }

    @Test("P3: a write that cannot be marked goes when that is said")
    func unmarked() throws {
        var scenario = Scenarios.small
        scenario.isRecorded = true
        scenario.writesPerWriter = 2
        scenario.clearings = 1
        scenario.trouble = [.markFails, .logFails]
        scenario.failures = 2
        scenario.jobs = []
        try walk(scenario)
    }

    @Test("P1, P3: a write waits for a copy and for the log, whatever fails")
    func recordedUnderAJob() throws {
        var scenario = Scenarios.small
        scenario.isRecorded = true
        scenario.readers = 1
        scenario.clearings = 1
        scenario.trouble = [.logFails, .sourceReadFails, .scratchWriteFails]
        try walk(scenario)
    }

    @Test("P5: writes that share a block never undo each other, and none waits for ever")
    func blocks() throws {
        var scenario = Scenarios.small
        scenario.writers = 3
        scenario.unaligned = [0, 2]
        scenario.isRecorded = true
        try walk(scenario)
    }

    @Test("P1: zeroing steps aside for a begin, and a begin waits for what is at work")
    func zeroing() throws {
        var scenario = Scenarios.small
        scenario.holds = true
        scenario.abandonedBegins = 1
        scenario.writers = 1
        scenario.zeroers = 2
        scenario.zeroingPlaces = 1
        scenario.readers = 1
        try walk(scenario)
    }

    @Test("P1, P3: zeroing, begins and the log")
    func zeroingRecorded() throws {
        var scenario = Scenarios.small
        scenario.holds = true
        scenario.writers = 1
        scenario.zeroers = 1
        scenario.isRecorded = true
        scenario.clearings = 1
        scenario.trouble = .logFails
        try walk(scenario)
    }
}

/// Small cases that tests begin with.
enum Scenarios {
    /// Two clusters, two writers, one job.
    static var small: Scenario {
        var scenario = Scenario()
        scenario.content = [1, 2]
        scenario.writeRanges = [0..<1, 0..<2]
        scenario.readRanges = [0..<2]
        scenario.readers = 0
        scenario.jobs = [JobPlan(beginsAtStart: false)]
        return scenario
    }
}

/// Wrong drivers that the same walk must find out; otherwise its silence would mean nothing.
@Suite("Changes of a disk, canaries")
struct ChangesCanaryTests {
    private func expectCaught(_ rule: DriverRule, _ change: (inout Scenario) -> Void) {
        var scenario = Scenarios.small
        change(&scenario)
        #expect(throws: Never.self, "the right driver is not blamed") { try Walk.all(scenario) }
        scenario.driverRule = rule
        #expect(throws: Violation.self) { try Walk.all(scenario) }
    }

    @Test("blocks that are marked when the write is complete are caught")
    func marksLate() { expectCaught(.marksLate) { $0.isRecorded = true } }

    @Test("bits that are called durable without a sync are caught")
    func skipsSync() {
        expectCaught(.skipsSync) { scenario in
            scenario.isRecorded = true
            scenario.clearings = 2
            scenario.jobs = []
        }
    }

    @Test("writes that go before the loss is declared are caught")
    func declaresLate() {
        expectCaught(.declaresLate) { scenario in
            scenario.isRecorded = true
            scenario.jobs = []
            scenario.trouble = .logFails
        }
    }

    @Test("a write that could not be marked, and goes before that is said, is caught")
    func submitsUnsaid() {
        expectCaught(.submitsUnsaid) { scenario in
            scenario.isRecorded = true
            scenario.jobs = []
            scenario.trouble = .markFails
        }
    }

    @Test("steps of zeroing that wait for the begin which waits for them are caught")
    func hidesSteps() {
        expectCaught(.hidesSteps) { scenario in
            scenario.holds = true
            scenario.writers = 0
            scenario.zeroers = 1
        }
    }

    @Test("writes that undo each other in a block are caught")
    func hidesBlocks() {
        expectCaught(.hidesBlocks) { scenario in
            scenario.unaligned = [0]
            scenario.jobs = []
        }
    }

    @Test("a write whose end is not told is caught")
    func forgetsFinished() { expectCaught(.forgetsFinished) { $0.holds = true } }
}
