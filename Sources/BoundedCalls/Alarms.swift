import Synchronization
import SystemLayer

/// Calls back when a time is over.
///
/// Nearly every alarm is cancelled long before. One thread sleeps until the earliest one, so that
/// setting and cancelling an alarm cost a lock and wake nobody.
package final class Alarms: Sendable {
    package static let shared = Alarms()

    private struct Alarm: Sendable {
        /// On the monotonic clock, in nanoseconds.
        let deadline: UInt64
        let body: @Sendable () -> Void
    }

    private struct State {
        var alarms: [UInt64: Alarm] = [:]
        var lastNumber: UInt64 = 0
        var hasThread = false
        /// When the thread wakes by itself.
        var wakesAt = UInt64.max
    }

    private let state = Mutex(State())
    private let wakeups = WakeCount()

    /// Calls `body`, on a thread of the alarms' own, unless it is cancelled before; `body` waits
    /// for nothing.
    ///
    /// Returns the number to cancel it with.
    package func set(after milliseconds: Int32, _ body: @escaping @Sendable () -> Void) -> UInt64 {
        let deadline = MonotonicClock.now() + UInt64(max(milliseconds, 0)) * 1_000_000
        let (number, needsThread, isEarlier) = state.withLock { state in
            state.lastNumber += 1
            state.alarms[state.lastNumber] = Alarm(deadline: deadline, body: body)
            defer { state.hasThread = true }
            return (state.lastNumber, !state.hasThread, deadline < state.wakesAt)
        }
        if needsThread { start() }
        if isEarlier { wakeups.signal() }
        return number
    }

    /// Forgets an alarm; one that is being called is not waited for.
    func cancel(_ number: UInt64) {
        // A body may hold the last reference to something: it goes after the lock.
        _ = state.withLock { $0.alarms.removeValue(forKey: number) }
    }

    private func start() {
        do throws(SystemFault) {
            _ = try WorkerThread(name: "nbdpull-alarms") { self.run() }
        } catch {
            // A late answer is better than none: it comes by the runtime's own clock.
            Task {
                while self.hasWork() {
                    _ = self.callDue()
                    try? await Task.sleep(for: .milliseconds(100))
                }
            }
        }
    }

    private func run() {
        while true {
            let pause = callDue()
            let isWoken = wakeups.wait(milliseconds: pause ?? CallThreads.idleMilliseconds)
            if pause == nil, !isWoken, !hasWork() { return }
        }
    }

    /// Whether there are alarms; without any, the next one set starts a thread.
    private func hasWork() -> Bool {
        state.withLock { state in
            state.hasThread = !state.alarms.isEmpty
            return state.hasThread
        }
    }

    /// Calls what is due; milliseconds until the next one, nil when there is none.
    private func callDue() -> Int32? {
        let now = MonotonicClock.now()
        let (due, next) = state.withLock { state in
            let due = state.alarms.filter { $0.value.deadline <= now }
            for number in due.keys { state.alarms[number] = nil }
            let next = state.alarms.values.map(\.deadline).min()
            state.wakesAt = next ?? .max
            return (due, next)
        }
        for alarm in due.values { alarm.body() }
        return next.map { Int32(clamping: ($0 - now) / 1_000_000 + 1) }
    }
}

/// What the threads of calls have in common.
enum CallThreads {
    /// How long one that has nothing to do waits for more, in milliseconds.
    static let idleMilliseconds: Int32 = 10_000
}
