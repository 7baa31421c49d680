package import ServerInterface
import Synchronization
import SystemLayer

/// Runs calls that may never return on threads of their own, so that nobody waits for a storage but
/// those who named it.
///
/// Calls on one place share a few threads: what is more waits its turn, and is refused when all of
/// them have been stuck for longer than their limits. A caller is answered in time even if its call
/// is not: what such a call returns later is handed to its `late`, which takes it back.
///
/// A thread that has nothing left to do waits a few seconds for the next call, of whatever place.
package final class StorageCalls: Sendable {
    /// Calls of one place that run at once.
    package static let threadsPerPlace = 8
    /// Calls of all places that run at once; above it nothing new is begun.
    package static let threadsMax = 512
    /// Calls of one place that wait for a thread.
    package static let waitersPerPlace = 4096
    /// Threads that wait for a call.
    package static let idleThreadsMax = 8

    /// What a call is allowed.
    package struct Terms: Sendable {
        /// The caller is answered by then, in milliseconds; nil waits as long as it takes.
        package var milliseconds: Int32?
        /// The call begins something: when the server stops, its caller is answered at once, and it
        /// may be refused when too many calls are stuck.
        package var beginsSomething: Bool

        /// A call that begins something, within a limit or as long as it takes.
        package static func begin(milliseconds: Int32?) -> Terms {
            Terms(milliseconds: milliseconds, beginsSomething: true)
        }
        /// A call that ends something: never refused.
        package static func end(milliseconds: Int32?) -> Terms {
            Terms(milliseconds: milliseconds, beginsSomething: false)
        }
    }

    /// A call, whatever it returns.
    private final class Ticket: Sendable {
        let number: UInt64
        let beginsSomething: Bool
        let isWanted: @Sendable () -> Bool
        let isUrgent: @Sendable () -> Bool
        let comesEarly: Bool
        let run: @Sendable () -> Void
        let refuse: @Sendable (ServerFault) -> Void

        init(
            number: UInt64, beginsSomething: Bool, isWanted: @escaping @Sendable () -> Bool,
            isUrgent: @escaping @Sendable () -> Bool, comesEarly: Bool,
            run: @escaping @Sendable () -> Void,
            refuse: @escaping @Sendable (ServerFault) -> Void
        ) {
            self.number = number
            self.beginsSomething = beginsSomething
            self.isWanted = isWanted
            self.isUrgent = isUrgent
            self.comesEarly = comesEarly
            self.run = run
            self.refuse = refuse
        }
    }

    /// A call that a thread is to run.
    private struct Errand {
        let ticket: Ticket
        let place: StoragePlace
    }

    /// A thread that waits for a call.
    private final class IdleThread: Sendable {
        private let errand = Mutex<Errand?>(nil)
        private let wakeups = WakeCount()

        /// Hands it a call; only for one that has been taken from the list of those that wait.
        func run(_ errand: Errand) {
            self.errand.withLock { $0 = errand }
            wakeups.signal()
        }

        /// The call that it was handed; nil when none came in time.
        func wait(milliseconds: Int32) -> Errand? {
            guard wakeups.wait(milliseconds: milliseconds) else { return nil }
            return errand.withLock { $0.take() }
        }

        /// The call that it is about to be handed.
        func wait() -> Errand? {
            wakeups.wait()
            return errand.withLock { $0.take() }
        }
    }

    private struct Lane {
        var running: [UInt64: Ticket] = [:]
        /// Of those, the ones whose callers have given up.
        var overdue: Set<UInt64> = []
        var waiting: [Ticket] = []
    }

    private struct State {
        var lanes: [StoragePlace: Lane] = [:]
        /// The one that has waited for the shortest time comes last, and is taken first.
        var idle: [IdleThread] = []
        var runningCount = 0
        var lastNumber: UInt64 = 0
        var isStopping = false
    }

    private enum Entry {
        case start
        case hand(IdleThread)
        case wait
        case refuse(ServerFault)
    }

    private let state = Mutex(State())

    package init() {}

    /// Threads that run calls now.
    package var runningCount: Int { state.withLock { $0.runningCount } }

    /// Calls that wait for a thread of a place.
    package func waitingCount(at place: StoragePlace) -> Int {
        state.withLock { $0.lanes[place]?.waiting.count ?? 0 }
    }

    /// Runs `body` on a thread and waits for what it returns, as long as the terms say.
    ///
    /// `what` names what is waited for in an error. A value that comes when the caller has given up
    /// goes to `late`, on the same thread. Of the calls that wait for a thread of their place those
    /// come first that are urgent by then, and after those the ones that come early; `isUrgent` is
    /// asked often, must not wait, and makes no call here. Throws nothing: the result holds `body`'s fault, or that of a call that was given
    /// up, refused, or cut short by `stop()`.
    package func run<Value: Sendable>(
        at place: StoragePlace, what: String, _ terms: Terms,
        isUrgent: @escaping @Sendable () -> Bool = { false }, comesEarly: Bool = false,
        late: @escaping @Sendable (Value) -> Void = { _ in },
        _ body: @escaping @Sendable () -> Result<Value, ServerFault>
    ) async -> Result<Value, ServerFault> {
        await withCheckedContinuation { continuation in
            let answer = Answer<Result<Value, ServerFault>>(continuation)
            let ticket = Ticket(
                number: nextNumber(), beginsSomething: terms.beginsSomething,
                isWanted: { !answer.isGiven || !terms.beginsSomething }, isUrgent: isUrgent,
                comesEarly: comesEarly,
                run: {
                    let result = body()
                    if !answer.give(result), case .success(let value) = result { late(value) }
                }, refuse: { answer.give(.failure($0)) })
            enter(ticket, place)
            guard let limit = terms.milliseconds else { return }
            answer.give(
                .failure(.timedOut(what: what, milliseconds: UInt64(limit))), after: limit
            ) { self.noteOverdue(ticket, place) }
        }
    }

    /// Answers everybody who waits to begin something; what ends something goes on.
    package func stop() {
        let open = state.withLock { state in
            state.isStopping = true
            return state.lanes.values.flatMap { Array($0.running.values) + $0.waiting }
        }
        for ticket in open where ticket.beginsSomething { ticket.refuse(.shuttingDown) }
    }

    private func nextNumber() -> UInt64 {
        state.withLock { state in
            state.lastNumber += 1
            return state.lastNumber
        }
    }

    private func enter(_ ticket: Ticket, _ place: StoragePlace) {
        let entry = state.withLock { state in Self.enter(ticket, place, &state) }
        switch entry {
        case .wait: break
        case .refuse(let fault): ticket.refuse(fault)
        case .hand(let thread): thread.run(Errand(ticket: ticket, place: place))
        case .start:
            do throws(SystemFault) {
                // A thread keeps what its body holds for as long as it lives, so it holds no call.
                let thread = IdleThread()
                _ = try WorkerThread(name: "nbdpull-storage") { self.work(thread) }
                thread.run(Errand(ticket: ticket, place: place))
            } catch {
                ticket.refuse(
                    .systemUnsupported(detail: "no thread: \(error.call): \(error.errorText)"))
                withdraw(ticket, place)
            }
        }
    }

    private static func enter(
        _ ticket: Ticket, _ place: StoragePlace, _ state: inout State
    ) -> Entry {
        if ticket.beginsSomething, state.isStopping { return .refuse(.shuttingDown) }
        var lane = state.lanes[place] ?? Lane()
        defer { state.lanes[place] = lane }
        let threads = place.threads
        if ticket.beginsSomething {
            guard lane.overdue.count < threads, state.runningCount < threadsMax,
                lane.waiting.count < waitersPerPlace
            else {
                return .refuse(
                    .storageStuck(
                        what: lane.overdue.isEmpty ? "the server" : place.text,
                        calls: max(lane.overdue.count, lane.running.count)))
            }
        }
        guard lane.running.count < threads else {
            lane.waiting.append(ticket)
            return .wait
        }
        lane.running[ticket.number] = ticket
        state.runningCount += 1
        return state.idle.popLast().map(Entry.hand) ?? .start
    }

    /// On a thread: the call, those that wait for its place, and those that come while it is idle.
    private func work(_ thread: IdleThread) {
        var isFirst = true
        while let errand = isFirst ? thread.wait() : idle(thread) {
            isFirst = false
            work(errand)
        }
    }

    private func work(_ errand: Errand) {
        var ticket: Ticket? = errand.ticket
        while let current = ticket {
            current.run()
            ticket = leave(current, errand.place)
        }
    }

    /// Waits for a call; nil when the thread is to end.
    private func idle(_ thread: IdleThread) -> Errand? {
        let waits = state.withLock { state in
            guard !state.isStopping, state.idle.count < Self.idleThreadsMax else { return false }
            state.idle.append(thread)
            return true
        }
        guard waits else { return nil }
        if let errand = thread.wait(milliseconds: CallThreads.idleMilliseconds) { return errand }
        let isTaken = state.withLock { state in
            let count = state.idle.count
            state.idle.removeAll { $0 === thread }
            return state.idle.count == count
        }
        // Somebody has taken it in this moment, and hands it a call.
        return isTaken ? thread.wait() : nil
    }

    /// The call has returned; the next one that somebody still waits for takes its thread.
    private func leave(_ ticket: Ticket, _ place: StoragePlace) -> Ticket? {
        state.withLock { state in
            guard var lane = state.lanes[place] else { return nil }
            lane.running[ticket.number] = nil
            lane.overdue.remove(ticket.number)
            state.runningCount -= 1
            var next: Ticket?
            while next == nil, !lane.waiting.isEmpty {
                let urgent =
                    lane.waiting.firstIndex { $0.isUrgent() }
                    ?? lane.waiting.firstIndex { $0.comesEarly }
                let candidate = lane.waiting.remove(at: urgent ?? 0)
                if candidate.isWanted() { next = candidate }
            }
            if let next {
                lane.running[next.number] = next
                state.runningCount += 1
            }
            state.lanes[place] = lane.running.isEmpty && lane.waiting.isEmpty ? nil : lane
            return next
        }
    }

    /// There is no thread for the call; those that wait for one at the same place wait for others'
    /// threads, or have waited in vain.
    private func withdraw(_ ticket: Ticket, _ place: StoragePlace) {
        let stranded = state.withLock { state -> [Ticket] in
            guard var lane = state.lanes[place] else { return [] }
            lane.running[ticket.number] = nil
            state.runningCount -= 1
            let isLast = lane.running.isEmpty
            state.lanes[place] = isLast ? nil : lane
            return isLast ? lane.waiting : []
        }
        for other in stranded { other.refuse(.systemUnsupported(detail: "no thread is to be had")) }
    }

    private func noteOverdue(_ ticket: Ticket, _ place: StoragePlace) {
        state.withLock { state in
            if state.lanes[place]?.running[ticket.number] != nil {
                state.lanes[place]?.overdue.insert(ticket.number)
            } else if ticket.beginsSomething {
                // What ends something is done all the same, when its turn comes.
                state.lanes[place]?.waiting.removeAll { $0 === ticket }
            }
        }
    }
}

extension StoragePlace {
    /// Calls of the place that run at once.
    fileprivate var threads: Int {
        switch self {
        case .storage, .host, .tracking: StorageCalls.threadsPerPlace
        // One reload after the other: the last one counts.
        case .security, .picture: 1
        // Each owns disks that no other call has, and what it waits for is bounded.
        case .disks: 64
        }
    }
}
