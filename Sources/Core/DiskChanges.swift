package import PointInTime
package import Tracking

/// Everything that a change of one disk passes, as one state machine without I/O: changes,
/// completions and calls in, actions out.
///
/// It lives on the disk's home ring.
///
/// A change passes five gates, in this order:
/// 1. *begin*: while an instant is being fixed (`hold`) no new change starts.
/// 2. *copy*: what a job still needs of the clusters it touches is copied first.
/// 3. *overlap*: of changes that share a block, and of which one writes back bytes of the block's
///    others, one is at work at a time.
/// 4. *intent*: its regions are durably marked in the write-intent log.
/// 5. *submit*: the driver marks its blocks and submits it.
///
/// Mostly all gates are open: then `admit` says `.go`, and nothing is queued, stored or allocated.
/// A change that waits comes back exactly once, as `.submit`, whatever fails meanwhile. `finished`
/// follows in both cases.
package struct DiskChanges: Sendable, Hashable {
    /// The jobs of the disk, and what is being copied for them.
    package internal(set) var copies: CopyBeforeWrite
    /// Nil when changes are not recorded.
    var intent: RecordedRegions?
    /// Whether changes can share a block of the source and undo each other.
    private let hasBlocks: Bool

    /// Changes in flight: past the first gate and not finished.
    ///
    /// Zeroing requests at work count as well.
    package internal(set) var inFlight = 0
    /// Whether an instant is being fixed.
    package private(set) var isHeld = false
    /// `.quiet` is owed as soon as nothing is in flight.
    private var owesQuiet = false

    private var waitingForBegin: [Change] = []
    /// By number, those that wait for a copy or for the log; as long as the highest number that
    /// ever did.
    private var parked: [Parked?] = []
    /// At work, where `hasBlocks`, and those that wait for them.
    private var running: [Change] = []
    private var waitingForOverlap: [Change] = []
    /// Through all gates, for the driver to submit.
    private var free: [ChangeID] = []
    private var nextFree = 0
    var zeroing: ZeroingQueue

    private struct Parked: Hashable {
        let change: Change
        let gate: ParkedGate
    }

    /// No change is in flight, no job is there, and nothing is recorded.
    ///
    /// `changeLimit`: changes have numbers below it. `hasBlocks`: changes may be widened to blocks
    /// of the source. `zeroingLimit`: zeroing requests at work at once.
    package init(changeLimit: Int, hasBlocks: Bool, zeroingLimit: Int) {
        copies = CopyBeforeWrite(changeLimit: changeLimit)
        zeroing = ZeroingQueue(limit: zeroingLimit)
        self.hasBlocks = hasBlocks
        if hasBlocks { running.reserveCapacity(128) }
    }
}

// MARK: Changes

extension DiskChanges {
    /// Asks whether a change may be submitted; `.waits`: perform the actions, `.submit` follows.
    package mutating func admit(_ change: Change, now: UInt64) -> Admission {
        if isHeld, !change.isStep {
            waitingForBegin.append(change)
            return .waits
        }
        inFlight += 1
        return passCopy(change, now: now)
    }

    /// The change is complete, or has failed; what waited for it goes on.
    package mutating func finished(_ change: Change) {
        inFlight -= 1
        if !change.changesNothing { intent?.finished(change) }
        guard hasBlocks else { return }
        if let position = running.firstIndex(where: { $0.id == change.id }) {
            running.swapAt(position, running.count - 1)
            running.removeLast()
        }
        guard !waitingForOverlap.isEmpty else { return }
        let waiting = waitingForOverlap
        waitingForOverlap.removeAll(keepingCapacity: true)
        for change in waiting { passOn(passOverlap(change), change.id) }
    }

    private mutating func passCopy(_ change: Change, now: UInt64) -> Admission {
        let clusters = ClusterGeometry.clusters(
            touching: change.bytes.lowerBound, length: UInt64(change.bytes.count))
        if copies.admit(change.id, clusters: clusters, now: now) == .waits {
            return park(change, at: .copy)
        }
        return passOverlap(change)
    }

    private mutating func passOverlap(_ change: Change) -> Admission {
        guard hasBlocks else { return passIntent(change) }
        // Those that wait already go first, or a busy block would keep them waiting for ever.
        if running.contains(where: change.overlaps)
            || waitingForOverlap.contains(where: change.overlaps)
        {
            waitingForOverlap.append(change)
            return .waits
        }
        running.append(change)
        return passIntent(change)
    }

    private mutating func passIntent(_ change: Change) -> Admission {
        guard !change.changesNothing, intent?.admit(change) == .waits else { return .go }
        return park(change, at: .intent)
    }

    /// Keeps a change that waits; a thousand disks must not each pay for all changes that there
    /// could be.
    private mutating func park(_ change: Change, at gate: ParkedGate) -> Admission {
        let missing = change.id.number + 1 - parked.count
        if missing > 0 {
            parked += repeatElement(nil, count: max(missing, min(parked.count, 1024)))
        }
        precondition(parked[change.id.number] == nil, "a change waits at one gate at a time")
        parked[change.id.number] = Parked(change: change, gate: gate)
        return .waits
    }

    /// Whether a change waits for old content to be copied.
    package func waitsForCopy(_ id: ChangeID) -> Bool {
        id.number < parked.count && parked[id.number]?.gate == .copy
    }

    private mutating func unpark(_ id: ChangeID, from gate: ParkedGate) -> Change {
        guard let waiting = parked[id.number], waiting.gate == gate else {
            preconditionFailure("only a change that waits at the gate is let go there")
        }
        parked[id.number] = nil
        return waiting.change
    }

    /// A change that has waited has passed all gates, or waits at the next.
    private mutating func passOn(_ admission: Admission, _ id: ChangeID) {
        if admission == .go { free.append(id) }
    }
}

// MARK: Actions

extension DiskChanges {
    /// Takes the next action, or nil when there is nothing to do until something happens.
    ///
    /// `ring`: places for zeroing requests that all disks of the ring share.
    package mutating func nextAction(_ ring: inout Places) -> DiskAction? {
        while true {
            if nextFree < free.count {
                nextFree += 1
                return .submit(free[nextFree - 1])
            }
            if nextFree > 0 {
                free.removeAll(keepingCapacity: true)
                nextFree = 0
            }
            if let action = copies.nextAction() {
                guard let action = perform(action) else { continue }
                return action
            }
            if let action = intent?.nextAction() {
                guard let action = perform(action) else { continue }
                return action
            }
            if owesQuiet, inFlight == 0 {
                owesQuiet = false
                return .quiet
            }
            return startZeroing(&ring)
        }
    }

    /// What is left of it for the driver; nil: a change goes to its next gate.
    private mutating func perform(_ action: CopyAction) -> DiskAction? {
        switch action {
        case .readSource(let copy, let clusters): return .readSource(copy, clusters: clusters)
        case .writeScratch(let write): return .writeScratch(write)
        case .copyDone(let copy): return .copyDone(copy)
        case .jobBroken(let job, let cause): return .jobBroken(job, cause)
        case .jobDetached(let job): return .jobDetached(job)
        case .pass(let id):
            passOn(passOverlap(unpark(id, from: .copy)), id)
            return nil
        }
    }

    private mutating func perform(_ action: IntentAction) -> DiskAction? {
        switch action {
        case .writeLog(let generation): return .writeLog(generation: generation)
        case .syncBits: return .syncBits
        case .trackingLost: return .declareLoss
        case .pass(let id):
            _ = unpark(id, from: .intent)
            return .submit(id)
        }
    }
}

// MARK: Fixing an instant

extension DiskChanges {
    /// From now on changes wait; `.quiet` follows when none is in flight.
    package mutating func hold() {
        precondition(!isHeld, "one begin at a time")
        isHeld = true
        owesQuiet = true
    }

    /// Whether the disk is held and nothing is in flight: its content is that of one instant.
    package var isQuiet: Bool { isHeld && inFlight == 0 }

    /// The instant is over: what waited for it goes on.
    package mutating func resume(now: UInt64) {
        isHeld = false
        owesQuiet = false
        let waiting = waitingForBegin
        waitingForBegin.removeAll(keepingCapacity: true)
        for change in waiting { passOn(admit(change, now: now), change.id) }
    }

    /// Begins a job whose instant is now, or goes on with one of which `found` is in use; nil when
    /// there is no place for it.
    package mutating func attach(
        _ ledger: LedgerView, slotLimit: UInt32, copyTimeoutNanoseconds: UInt64,
        found: LedgerUse? = nil
    ) -> JobIndex? {
        precondition(isQuiet, "an instant is fixed on a quiet disk")
        return copies.attach(
            ledger, slotLimit: slotLimit, copyTimeoutNanoseconds: copyTimeoutNanoseconds,
            found: found)
    }

    /// Whether no change and no zeroing request is in flight or waits.
    package var isIdle: Bool {
        inFlight == 0 && waitingForBegin.isEmpty && zeroing.waiting.isEmpty
    }
}
