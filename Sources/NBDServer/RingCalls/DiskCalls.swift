import ServerInterface
import SystemLayer

/// Gives a disk to its home ring; true when the ring has it.
struct AddDiskCall: RingCall {
    private var question: RingQuestion
    private let ring: Mailbox<RingMessage>
    private let disk: DiskID
    var replies: Replies { question.replies }
    var deadline: UInt64 { question.deadline }

    init(
        _ export: LiveExport, _ tracking: TrackingSeed?, _ shared: ServerShared,
        now: UInt64 = MonotonicClock.now()
    ) {
        ring = shared.mailboxes[export.homeRing]
        disk = export.disk
        question = RingQuestion(ring, now: now) { .addDisk(export, tracking, $0) }
    }

    mutating func step(now: UInt64) -> Bool? {
        switch question.step(now: now) {
        case nil: return nil
        case .done, .refused: return true
        case .late:
            // Messages are handled in order: it goes as soon as it has arrived.
            ring.post(.removeDisk(disk, Claim(), Replies().ticket()))
            return false
        }
    }
}

/// Disconnects everyone who uses one of the exports; false when the time is over before they are
/// gone.
struct DisconnectCall: RingCall {
    private var questions = Questions()
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(
        _ exports: [ExportID], gracefully: Bool, milliseconds: Int32, _ shared: ServerShared,
        now: UInt64 = MonotonicClock.now()
    ) {
        questions.begin(milliseconds: milliseconds, now: now)
        for export in exports {
            for mailbox in shared.mailboxes {
                mailbox.post(
                    .closeConnections(export, gracefully: gracefully, questions.ticket()))
            }
        }
    }

    mutating func step(now: UInt64) -> Bool? {
        questions.takeAnswers()
        if questions.areAnswered { return true }
        return questions.isLate(now) ? false : nil
    }
}

/// Takes a disk from its home ring, which gives it away unless somebody uses it.
struct RemoveDiskCall: RingCall {
    enum Outcome { case removed, inUse, stuck }

    private var questions = Questions()
    private let claim = Claim()
    private var isClaimed = false
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(
        _ disk: DiskID, _ ring: Mailbox<RingMessage>, now: UInt64 = MonotonicClock.now()
    ) {
        questions.begin(milliseconds: Limits.ringMilliseconds, now: now)
        ring.post(.removeDisk(disk, claim, questions.ticket()))
    }

    mutating func step(now: UInt64) -> Outcome? {
        questions.takeAnswers()
        if questions.areAnswered { return questions.refusals == 0 ? .removed : .inUse }
        guard questions.isLate(now) else { return nil }
        if isClaimed { return .inUse }
        if claim.take() { return .stuck }
        // The ring is at it in this moment.
        isClaimed = true
        questions.extend(milliseconds: Limits.ringMilliseconds, now: now)
        return nil
    }
}

/// Has a disk's clients leave, then takes the disk from its ring.
struct DetachCall: RingCall {
    private enum State {
        case draining(DisconnectCall)
        case closing(DisconnectCall)
        case removing(RemoveDiskCall)
    }

    private let disk: DiskID
    private let export: ExportID
    private let home: Int
    private let forcedMilliseconds: Int32
    private let shared: ServerShared
    private var state: State

    var replies: Replies {
        switch state {
        case .draining(let call), .closing(let call): call.replies
        case .removing(let call): call.replies
        }
    }

    var deadline: UInt64 {
        switch state {
        case .draining(let call), .closing(let call): call.deadline
        case .removing(let call): call.deadline
        }
    }

    /// Requests in flight have `gracefulMilliseconds` to end, connections then
    /// `forcedMilliseconds`.
    init(
        _ disk: DiskID, _ export: ExportID, home: Int, gracefulMilliseconds: Int32,
        forcedMilliseconds: Int32, _ shared: ServerShared, now: UInt64 = MonotonicClock.now()
    ) {
        self.disk = disk
        self.export = export
        self.home = home
        self.forcedMilliseconds = forcedMilliseconds
        self.shared = shared
        state = .draining(
            DisconnectCall(
                [export], gracefully: true, milliseconds: gracefulMilliseconds, shared, now: now))
    }

    mutating func step(now: UInt64) -> RemoveDiskCall.Outcome? {
        while true {
            switch state {
            case .draining(var call):
                guard let isEmpty = call.step(now: now) else {
                    state = .draining(call)
                    return nil
                }
                state = isEmpty ? removing(now) : closing(now)
            case .closing(var call):
                guard call.step(now: now) != nil else {
                    state = .closing(call)
                    return nil
                }
                state = removing(now)
            case .removing(var call):
                let outcome = call.step(now: now)
                state = .removing(call)
                return outcome
            }
        }
    }

    private func closing(_ now: UInt64) -> State {
        .closing(
            DisconnectCall(
                [export], gracefully: false, milliseconds: forcedMilliseconds, shared, now: now))
    }

    private func removing(_ now: UInt64) -> State {
        .removing(RemoveDiskCall(disk, shared.mailboxes[home], now: now))
    }
}

/// Stops all rings; false when the time is over before they have stopped.
struct StopCall: RingCall {
    private var questions = Questions()
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(_ shared: ServerShared, now: UInt64 = MonotonicClock.now()) {
        questions.begin(milliseconds: Limits.stopRingsMilliseconds, now: now)
        for mailbox in shared.mailboxes { mailbox.post(.stop(questions.ticket())) }
    }

    mutating func step(now: UInt64) -> Bool? {
        questions.takeAnswers()
        if questions.areAnswered { return true }
        return questions.isLate(now) ? false : nil
    }
}
