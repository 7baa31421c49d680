import Core
import ServerInterface
import SystemLayer

/// Fixes one instant on several disks: `InstantFixing` decides, here rings are asked and answer.
///
/// On a fault nothing has happened, as far as rings answered in time when it was taken back.
struct InstantCall: RingCall {
    struct Outcome {
        let result: InstantFixing.Outcome
        /// How long changes were held, in nanoseconds.
        let held: UInt64
        /// Layers that were taken back: no ring records in their `next`.
        let undone: [RecordingSwap]
    }

    private let instant: Instant
    private let shared: ServerShared
    private let disks: [(id: DiskID, homeRing: Int)]
    private var fixing: InstantFixing
    private let own = Replies()
    private let start: UInt64
    private var limit: UInt64
    private var undo: UndoCall?

    var replies: Replies { undo?.replies ?? own }
    var deadline: UInt64 { undo?.deadline ?? limit }

    init(_ instant: Instant, _ shared: ServerShared, now: UInt64 = MonotonicClock.now()) {
        self.instant = instant
        self.shared = shared
        disks = instant.disks
        fixing = InstantFixing(diskCount: disks.count, partCount: instant.partCount)
        start = now
        limit = now + UInt64(Limits.holdMilliseconds) * 1_000_000
    }

    mutating func step(now: UInt64) -> Outcome? {
        perform(now)
        while undo == nil, fixing.outcome == nil {
            guard let reply = own.take() else {
                guard now >= limit else { return nil }
                fixing.timeIsOver()
                perform(now)
                continue
            }
            let wasHolding = fixing.isHolding
            if reply.number < disks.count {
                fixing.isQuiet(disk: reply.number)
            } else {
                fixing.carriedOut(part: reply.number - disks.count, succeeded: reply.succeeded)
            }
            if wasHolding, !fixing.isHolding {
                limit = now + UInt64(Limits.ringMilliseconds) * 1_000_000
            }
            perform(now)
        }
        guard let undone = stepUndo(now), let result = fixing.outcome else { return nil }
        return Outcome(result: result, held: now - start, undone: undone)
    }

    /// Nil while something is being taken back.
    private mutating func stepUndo(_ now: UInt64) -> [RecordingSwap]? {
        guard var call = undo else { return [] }
        defer { undo = call }
        return call.step(now: now)
    }

    private mutating func perform(_ now: UInt64) {
        while let action = fixing.nextAction() {
            switch action {
            case .hold(let disk):
                let (id, ring) = disks[disk]
                shared.mailboxes[ring].post(.hold(id, own.ticket(disk)))
            case .carryOut(let part):
                instant.carryOut(part, shared.mailboxes, own.ticket(disks.count + part))
            case .resume(let disk):
                let (id, ring) = disks[disk]
                shared.mailboxes[ring].post(.resume(id))
            case .takeBack: undo = UndoCall(instant, shared, now: now)
            }
        }
    }
}

/// Takes an instant back: nothing is preserved for it, and changes are recorded as before.
///
/// Returns the layers that were taken back. One that a ring may still record in is none of them: it
/// stays, and the next start adds it to what is recorded.
struct UndoCall: RingCall {
    private var questions = Questions()
    private let swaps: [RecordingSwap]
    private let shared: ServerShared
    private var isDetaching = true
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(_ instant: Instant, _ shared: ServerShared, now: UInt64 = MonotonicClock.now()) {
        swaps = instant.swaps
        self.shared = shared
        questions.begin(milliseconds: Limits.drainMilliseconds, now: now)
        for export in instant.exports {
            shared.mailboxes[export.homeRing].post(.detachJob(export, questions.ticket()))
        }
    }

    mutating func step(now: UInt64) -> [RecordingSwap]? {
        questions.takeAnswers()
        if isDetaching {
            guard questions.areAnswered || questions.isLate(now) else { return nil }
            isDetaching = false
            questions.begin(milliseconds: Limits.ringMilliseconds, now: now)
            for swap in swaps {
                shared.mailboxes[swap.homeRing].post(
                    .unswapRecording(swap.disk, swap.old, questions.ticket()))
            }
        }
        guard questions.areAnswered || questions.isLate(now) else { return nil }
        return questions.done.map { swaps[$0] }
    }
}

/// Ends what is in flight on a job's exports: their disks stop preserving, then their clients are
/// disconnected; what hangs is waited for as long as the limit allows.
struct EndCall: RingCall {
    private enum State {
        case detaching(Questions)
        case disconnecting(DisconnectCall)
    }

    private let exports: [ExportID]
    private let limit: UInt64
    private let shared: ServerShared
    private var state: State

    var replies: Replies {
        switch state {
        case .detaching(let questions): questions.replies
        case .disconnecting(let call): call.replies
        }
    }

    var deadline: UInt64 {
        switch state {
        case .detaching(let questions): questions.deadline
        case .disconnecting(let call): call.deadline
        }
    }

    init(
        _ exports: [BackupExport], milliseconds: Int32, _ shared: ServerShared,
        now: UInt64 = MonotonicClock.now()
    ) {
        self.exports = exports.map(\.id)
        self.shared = shared
        var questions = Questions()
        questions.begin(milliseconds: milliseconds, now: now)
        // Readers are told before the disks stop preserving: nothing read after that is handed out.
        for export in exports {
            shared.mailboxes[export.homeRing].post(.detachJob(export, questions.ticket()))
        }
        limit = questions.deadline
        state = .detaching(questions)
    }

    mutating func step(now: UInt64) -> Bool? {
        switch state {
        case .detaching(var questions):
            questions.takeAnswers()
            guard questions.areAnswered || questions.isLate(now) else {
                state = .detaching(questions)
                return nil
            }
            let left = Int32(clamping: (limit - min(now, limit)) / 1_000_000)
            var call = DisconnectCall(
                exports, gracefully: false, milliseconds: max(Limits.closingMilliseconds, left),
                shared, now: now)
            let outcome = call.step(now: now)
            state = .disconnecting(call)
            return outcome
        case .disconnecting(var call):
            let outcome = call.step(now: now)
            state = .disconnecting(call)
            return outcome
        }
    }
}
