import ServerInterface
import SystemLayer

/// Makes a disk larger on its home ring, between two changes.
///
/// Tried again while the write-intent log is being written: a matter of milliseconds, where a
/// `RestCall` came before.
struct GrowCall: RingCall {
    private enum State {
        case holding
        case growing(Claim)
        case settling
        case pausing
    }

    private let disk: DiskID
    private let growth: DiskGrowth
    private let ring: Mailbox<RingMessage>
    private var questions = Questions()
    private var state = State.holding
    private var attempts = 0
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(
        _ disk: DiskID, _ growth: DiskGrowth, _ ring: Mailbox<RingMessage>,
        now: UInt64 = MonotonicClock.now()
    ) {
        self.disk = disk
        self.growth = growth
        self.ring = ring
        hold(now)
    }

    mutating func step(now: UInt64) -> Result<Bool, ServerFault>? {
        while true {
            questions.takeAnswers()
            let isAnswered = questions.areAnswered
            let isLate = questions.isLate(now)
            switch state {
            case .pausing:
                guard isLate else { return nil }
                hold(now)
            case .holding:
                if isAnswered {
                    grow(now)
                } else if isLate {
                    return end(.failure(.holdTimedOut(milliseconds: Self.holdMilliseconds)))
                } else {
                    return nil
                }
            case .growing(let claim):
                if isAnswered { return answered(now) }
                guard isLate else { return nil }
                if claim.take() {
                    return end(.failure(.ringStuck(milliseconds: Self.ringMilliseconds)))
                }
                // The ring is at it in this moment.
                state = .settling
                questions.extend(milliseconds: Limits.ringMilliseconds, now: now)
            case .settling:
                return isAnswered || isLate ? answered(now) : nil
            }
        }
    }

    private static var holdMilliseconds: UInt64 { UInt64(Limits.holdMilliseconds) }
    private static var ringMilliseconds: UInt64 { UInt64(Limits.ringMilliseconds) }

    private mutating func hold(_ now: UInt64) {
        attempts += 1
        state = .holding
        questions.begin(milliseconds: Limits.holdMilliseconds, now: now)
        ring.post(.hold(disk, questions.ticket()))
    }

    private mutating func grow(_ now: UInt64) {
        let claim = Claim()
        state = .growing(claim)
        questions.begin(milliseconds: Limits.ringMilliseconds, now: now)
        ring.post(.growDisk(disk, growth, claim, questions.ticket()))
    }

    /// The ring has said whether it could, or is past its time.
    private mutating func answered(_ now: UInt64) -> Result<Bool, ServerFault>? {
        if !questions.done.isEmpty { return end(.success(true)) }
        guard attempts < Limits.growthAttempts else {
            return end(.failure(.holdTimedOut(milliseconds: Self.holdMilliseconds)))
        }
        ring.post(.resume(disk))
        state = .pausing
        questions.begin(milliseconds: Limits.growthPauseMilliseconds, now: now)
        return nil
    }

    private func end(_ result: Result<Bool, ServerFault>) -> Result<Bool, ServerFault> {
        ring.post(.resume(disk))
        return result
    }
}
