import ServerInterface
import SystemLayer

/// Waits until nothing is being written for a disk's record; from then on no mark leaves the log,
/// until `resumeClearing` is posted.
///
/// To make bits durable takes as long as the storage takes, so this is waited for while the disk's
/// machine goes on.
struct RestCall: RingCall {
    enum Outcome { case resting, busy, stuck }

    private enum State {
        case asking(RingQuestion)
        case pausing(until: UInt64)
    }

    private let disk: DiskID
    private let ring: Mailbox<RingMessage>
    private let end: UInt64
    private let own = Replies()
    private var state: State

    var replies: Replies {
        switch state {
        case .asking(let question): question.replies
        case .pausing: own
        }
    }

    var deadline: UInt64 {
        switch state {
        case .asking(let question): question.deadline
        case .pausing(let until): until
        }
    }

    /// `milliseconds`: how long the record may be busy.
    init(
        _ disk: DiskID, _ ring: Mailbox<RingMessage>, milliseconds: Int32,
        now: UInt64 = MonotonicClock.now()
    ) {
        self.disk = disk
        self.ring = ring
        end = now + UInt64(milliseconds) * 1_000_000
        state = .asking(RingQuestion(ring, now: now) { .pauseClearing(disk, $0) })
    }

    mutating func step(now: UInt64) -> Outcome? {
        switch state {
        case .pausing(let until):
            if now >= until {
                let disk = disk
                state = .asking(RingQuestion(ring, now: now) { .pauseClearing(disk, $0) })
            }
            return nil
        case .asking(var question):
            let outcome = question.step(now: now)
            state = .asking(question)
            switch outcome {
            case nil: return nil
            case .done: return .resting
            case .late: return .stuck
            case .refused:
                if now >= end { return .busy }
                state = .pausing(until: now + UInt64(Limits.growthPauseMilliseconds) * 1_000_000)
                return nil
            }
        }
    }
}
