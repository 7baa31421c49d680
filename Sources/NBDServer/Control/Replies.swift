import BoundedCalls
import Synchronization
import SystemLayer

/// Answers of rings to one call, each to a question that the call has numbered.
///
/// What is answered when nobody waits any more is forgotten with the last ticket.
final class Replies: Sendable {
    /// What a ring has to say to a question.
    struct Reply: Sendable {
        let number: Int
        let succeeded: Bool
    }

    private struct State {
        var queue: [Reply] = []
        /// Waits, without a thread, for the next reply.
        var waiter: Answer<Void>?
    }

    private let state = Mutex(State())
    /// Counts replies for a thread that waits; as many as were put in, or fewer.
    private let wakeups = WakeCount()

    /// A ticket for one question.
    func ticket(_ number: Int = 0) -> Ticket { Ticket(number: number, replies: self) }

    fileprivate func put(_ reply: Reply) {
        let waiter = state.withLock { state in
            state.queue.append(reply)
            return state.waiter.take()
        }
        wakeups.signal()
        waiter?.give(())
    }

    /// The oldest reply that is there; nil when there is none.
    ///
    /// Never waits.
    func take() -> Reply? {
        state.withLock { $0.queue.isEmpty ? nil : $0.queue.removeFirst() }
    }

    // MARK: Waiting

    /// Waits on this thread until a reply is there or `deadline`, in nanoseconds of the clock, has
    /// passed.
    func wait(until deadline: UInt64) {
        while state.withLock(\.queue.isEmpty) {
            guard wakeups.wait(milliseconds: Self.milliseconds(until: deadline)) else { return }
        }
    }

    /// The same without keeping a thread.
    func arrival(until deadline: UInt64) async {
        await withCheckedContinuation { continuation in
            let answer = Answer<Void>(continuation)
            let isThere = state.withLock { state in
                if state.queue.isEmpty { state.waiter = answer }
                return !state.queue.isEmpty
            }
            if isThere { answer.give(()) }
            answer.give((), after: Self.milliseconds(until: deadline))
        }
    }

    private static func milliseconds(until deadline: UInt64) -> Int32 {
        let now = MonotonicClock.now()
        return deadline > now ? Int32(clamping: (deadline - now) / 1_000_000 + 1) : 0
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

/// The right to act on a question, which only one has.
///
/// For what must not happen once nobody waits for it any more: the ring takes it before it acts, a
/// call that has waited in vain takes it away.
final class Claim: Sendable {
    private let isTaken = Atomic<Bool>(false)

    /// Takes the right; true for the first.
    func take() -> Bool { !isTaken.exchange(true, ordering: .acquiringAndReleasing) }
}
