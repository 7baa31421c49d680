import Synchronization
import System

/// Answers of rings to one call, each to a question that the call has numbered.
///
/// What is answered when nobody waits any more is forgotten with the last ticket.
final class Replies: Sendable {
    /// What a ring has to say to a question.
    struct Reply: Sendable {
        let number: Int
        let succeeded: Bool
    }

    private let queue = Mutex<[Reply]>([])
    private let wakeups = WakeCount()

    /// A ticket for one question.
    func ticket(_ number: Int = 0) -> Ticket { Ticket(number: number, replies: self) }

    fileprivate func put(_ reply: Reply) {
        queue.withLock { $0.append(reply) }
        wakeups.signal()
    }

    /// The oldest reply, waited for until `deadline`, in nanoseconds of the clock; nil when the time is over.
    func next(until deadline: UInt64) -> Reply? {
        let now = MonotonicClock.now()
        let left = deadline > now ? Int32(clamping: (deadline - now + 999_999) / 1_000_000) : 0
        guard wakeups.wait(milliseconds: left) else { return nil }
        return queue.withLock { $0.isEmpty ? nil : $0.removeFirst() }
    }

    /// The oldest reply that is there; nil when there is none.
    ///
    /// Never waits.
    func take() -> Reply? { next(until: 0) }

    /// The same, waited for so many milliseconds.
    func next(within milliseconds: Int32) -> Reply? {
        next(until: MonotonicClock.now() + UInt64(milliseconds) * 1_000_000)
    }
}

/// What a ring answers a question with; once.
struct Ticket: Sendable {
    fileprivate let number: Int
    fileprivate let replies: Replies

    func answer(_ succeeded: Bool = true) {
        replies.put(Replies.Reply(number: number, succeeded: succeeded))
    }
}
