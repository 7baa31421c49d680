import Core
import TrackingFiles

/// A promise that was broken.
package struct Violation: Error, Sendable, Hashable {
    package let text: String
    /// Number of the step in which it was seen; -1: after the last one.
    package let step: Int

    package init(text: String, step: Int) {
        self.text = text
        self.step = step
    }
}

/// A whole server over simulated storage, and everyone who uses it.
///
/// Production code decides: `DiskChanges`, `Zeroing`, `PointInTimeRead`, `InstantFixing`, `Ledger`,
/// `TrackingStore` and all below it. The world only does what they ask, in an order that a seed
/// chooses, over storage that fails, hangs, forgets and lies; and it remembers what was, to judge.
package final class World: FileWorld {
    let canary: Canary?
    var swarm: Swarm
    var draw = Draw(seed: 0)
    var faults = Faults()

    var now: UInt64 = 1_000_000_000
    /// Counts the processes that have served.
    package private(set) var process = 0
    private(set) var boot = 0
    var isDown = true
    /// Since when a clean stop is under way.
    var stoppingSince: UInt64?
    /// Disks are being closed.
    var isClosing = false
    /// The last stop was a clean one: nobody else has served since.
    var wasCleanStop = false
    /// The history is over; what is still on the stack only unwinds.
    private(set) var isOver = false

    var rings: [SimulatedRing] = []
    /// Where calls get their answers.
    let control = SimulatedRing(zeroingPlaces: 1)
    var disks: [SimulatedDisk] = []
    private(set) lazy var stage = FileStage(self)
    var operations: [Operation] = []
    var threads: [ThreadCall] = []
    var jobs: [SimulatedJob] = []
    /// Jobs that a killed process has left, until their disks are served.
    var leftJobs: [SimulatedJob] = []
    /// Where ledgers are followed.
    let memory = MemoryDirectory()
    var calls: [InstantCall] = []
    var jobCount = 0
    var checkpointCount = 0
    var lastStamp: Stamp = 1

    /// The I/O that a sweep lets go wrong was made.
    var planWasReached = false
    /// How the last process ends: killed, without power, in good order; nil: the seed chooses.
    var ending: Int?

    package private(set) var violation: Violation?
    /// What happened, when it is wanted.
    package var trace: [String]?
    package private(set) var stepsTaken = 0
    private var cursor = 0
    private var steps: StepList
    private var currentStep = -1
    private var depth = 0
    static let depthMax = 3

    package init(_ steps: StepList, swarm: Swarm? = nil, canary: Canary? = nil) {
        self.steps = steps
        self.swarm = swarm ?? Swarm(seed: steps.seed)
        self.canary = canary
        rings = (0..<self.swarm.ringCount).map { _ in
            SimulatedRing(zeroingPlaces: self.swarm.zeroingPlaces)
        }
        for number in 0..<self.swarm.diskCount { disks.append(SimulatedDisk(number, self)) }
    }

    /// Objects refer to one another in circles; nothing of a history outlives it.
    func dissolve() {
        for operation in operations { operation.dissolve() }
        operations = []
        threads = []
        calls = []
        jobs = []
        leftJobs = []
        for ring in rings + [control] { ring.messages = [] }
        for disk in disks { disk.forgetProcess() }
    }

    // MARK: Running

    /// Lives the history; returns what was violated.
    package func run() -> Violation? {
        draw = Draw(seed: steps.seed)
        start()
        if swarm.startsCalm { forgetTheStart() }
        while isGoing, takeStep() {}
        end()
        dissolve()
        return violation
    }

    /// The log forgets what it marks at a start, so that changes wait for it again.
    private func forgetTheStart() {
        faults.areOn = false
        calm()
        faults.areOn = true
    }

    var isGoing: Bool { violation == nil && !isOver }

    private func takeStep() -> Bool {
        guard cursor < steps.taken.count else { return false }
        currentStep = steps.taken[cursor]
        cursor += 1
        stepsTaken += 1
        draw = Draw(seed: steps.stepSeed(currentStep))
        if canary == .entersLate { for job in jobs { for part in job.parts { part.keepLedger() } } }
        perform(EventKind.allCases[draw.index(weights: swarm.weights)])
        return true
    }

    /// The end of the history, once: faults stop, and everything must end.
    func end() {
        guard isGoing else { return }
        currentStep = -1
        draw = Draw(seed: steps.seed ^ 1)
        finish()
        isOver = true
    }

    func fail(_ text: @autoclosure () -> String) {
        guard violation == nil else { return }
        violation = Violation(text: text(), step: currentStep)
        note("VIOLATION: \(violation?.text ?? "")")
    }

    func note(_ text: @autoclosure () -> String) {
        guard trace != nil else { return }
        trace?.append("\(currentStep): " + text())
    }

    // MARK: Calls that take their time

    /// Whether a process still serves.
    package func isAlive(_ process: Int) -> Bool { process == self.process && isGoing }

    /// Others go first; then the call goes on, unless its process is gone.
    package func pause() {
        guard depth < Self.depthMax, faults.areOn else { return }
        nest { draw, _ in draw.chance(30) }
    }

    /// The call is not answered before its place is healed, or never; whether it goes on.
    package func hang(forEver: Bool) -> Bool {
        guard depth < Self.depthMax, faults.areOn else { return false }
        nest { draw, kind in !forEver && kind == .heal && draw.chance(70) }
        if forEver, isGoing { end() }
        return !forEver && isGoing
    }

    /// Steps are taken below a call that waits, until it goes on.
    ///
    /// What began last ends first: that is the price for having no threads.
    private func nest(_ mayGoOn: (inout Draw, EventKind) -> Bool) {
        let born = process
        depth += 1
        defer { depth -= 1 }
        while isAlive(born), cursor < steps.taken.count {
            var next = Draw(seed: steps.stepSeed(steps.taken[cursor]))
            let kind = EventKind.allCases[next.index(weights: swarm.weights)]
            if kind == .resume || kind == .heal, mayGoOn(&next, kind) {
                cursor += 1
                return
            }
            if !takeStep() { return }
        }
    }

    // MARK: I/O

    /// What goes wrong with the next I/O at a place.
    package func nextFault(_ place: Place) -> Fault? {
        let fault = faults.next(place, rate: swarm.faultRate, &draw)
        if let fault { note("\(fault) at \(place)") }
        if fault != nil {
            switch place {
            case .source(let disk): disks[disk].hasFailed = true
            case .memory(let disk), .mark(let disk):
                disks[disk].evidenceHasFailed = true
                disks[disk].spoilExactness()
            case .state(let disk): disks[disk].spoilExactness()
            case .scratch: break
            }
        }
        return fault
    }

    /// Hands an I/O to storage; `end` follows, unless it hangs for ever.
    @discardableResult
    func submit(
        _ place: Place, parts: Int = 1,
        effect: @escaping (_ part: Int, _ isLost: Bool) -> Int32?,
        end: @escaping (Int32?) -> Void
    ) -> Operation {
        let operation = Operation(place, parts: parts, now: now, effect: effect, end: end)
        switch nextFault(place) {
        case nil: break
        case .fails(let errno):
            operation.errno = errno
            operation.partsLeft = 0
        case .failsDone(let errno):
            operation.errno = errno
            for _ in 0..<draw.below(parts + 1) { _ = operation.takeEffect() }
            operation.partsLeft = 0
        case .hangs(let forEver):
            // What a machine's own disk has taken in comes back when it is healed.
            var mayHangForEver = forEver
            if case .source = place { mayHangForEver = false }
            operation.fate = mayHangForEver ? .hangsForEver : .hangs
            if mayHangForEver, draw.chance(50) { operation.partsLeft = 0 }
        case .losesLater: operation.isLost = true
        case .delays: operation.patience = 30
        }
        operations.append(operation)
        return operation
    }

    /// One I/O goes on: takes effect by a part, or is answered.
    func moveOperation() {
        guard !operations.isEmpty else { return }
        let index = draw.below(operations.count)
        let operation = operations[index]
        if operation.patience > 0 {
            operation.patience -= 1
            return
        }
        if operation.takeEffect() { return }
        if operation.fate != .answered, faults.areOn { return }
        complete(at: index)
    }

    func complete(at index: Int) {
        let operation = operations.remove(at: index)
        while operation.takeEffect() {}
        operation.answer()
    }

    func thread(
        _ name: String, disk: Int, saves: UInt64? = nil, _ body: @escaping () -> Void
    ) {
        threads.append(ThreadCall(name, disk: disk, saves: saves, body))
    }

    /// One thread does its work; another that saves the same disk's layer waits for it.
    func runThread(at index: Int) {
        let call = threads[index]
        let disk = disks[call.disk]
        let layer = call.saves
        if let layer, disk.savingLayers.contains(layer) { return }
        threads.remove(at: index)
        let born = process
        if let layer { disk.savingLayers.insert(layer) }
        note("thread \(call.name) of disk \(call.disk)")
        call.body()
        if let layer, isAlive(born) { disk.savingLayers.remove(layer) }
    }

    func post(_ ring: SimulatedRing, _ message: @escaping () -> Void) {
        ring.messages.append(message)
    }

    // MARK: Files

    package func dawdle() { if draw.chance(swarm.pauseRate) { pause() } }

    package func table(of disk: Int, isMemory: Bool) -> FileTable {
        isMemory ? disks[disk].memory : disks[disk].files
    }

    package func markText(of disk: Int) -> String? { disks[disk].markText }
    package func setMarkText(_ text: String, of disk: Int) { disks[disk].markText = text }
    package var hidesErrors: Bool { canary == .hidesErrors }

    // MARK: Life and death of the process

    /// The process is gone, with all that it had in memory.
    func endProcess() {
        process += 1
        isDown = true
        stoppingSince = nil
        isClosing = false
        for operation in operations {
            operation.isForgotten = true
            // The kernel goes on with what it has.
            while operation.partsLeft > 0, draw.chance(60) { _ = operation.takeEffect() }
            operation.dissolve()
        }
        operations = []
        threads = []
        calls = []
        control.messages = []
        for ring in rings {
            ring.messages = []
            ring.places = Places(limit: swarm.zeroingPlaces)
        }
        leaveJobs()
        for disk in disks { disk.forgetProcess() }
    }

    func nextBoot() { boot += 1 }
}
