import Synchronization
package import SystemLayer

/// Waits that end: by what is waited for, or by time.
package enum Patience {
    /// Waits for tasks; false when the time is over before the last of them has ended.
    ///
    /// Those that have not ended go on.
    package static func wait(for tasks: [Task<Void, Never>], milliseconds: Int32) async -> Bool {
        await withCheckedContinuation { continuation in
            let answer = Answer<Bool>(continuation)
            Task {
                for task in tasks { await task.value }
                answer.give(true)
            }
            answer.give(false, after: milliseconds)
        }
    }

    /// `InUse.outwait`, for modules that make no system calls of their own.
    package static func outwait<Value: ~Copyable, Fault: Error>(
        nanoseconds: UInt64, while isInUse: (Fault) -> Bool, _ body: () throws(Fault) -> Value
    ) throws(Fault) -> Value {
        try InUse.outwait(nanoseconds: nanoseconds, while: isInUse, body)
    }
}

extension Latch {
    /// Waits for all reports without keeping a thread; false when the time is over first.
    package func isReached(within milliseconds: Int32) async -> Bool {
        await withCheckedContinuation { continuation in
            let answer = Answer<Bool>(continuation)
            whenReached { answer.give(true) }
            answer.give(false, after: milliseconds)
        }
    }
}

/// The one answer that somebody waits for: the first that is given counts.
package final class Answer<Value: Sendable>: Sendable {
    private struct State {
        var continuation: CheckedContinuation<Value, Never>?
        var alarm: UInt64?
    }

    private let state: Mutex<State>

    package init(_ continuation: CheckedContinuation<Value, Never>) {
        state = Mutex(State(continuation: continuation))
    }

    /// Whether an answer has been given.
    package var isGiven: Bool { state.withLock { $0.continuation == nil } }

    /// Gives the answer; false when there was one already.
    @discardableResult
    package func give(_ value: Value) -> Bool {
        let taken = state.withLock { state in
            let taken = state
            state = State()
            return taken
        }
        guard let continuation = taken.continuation else { return false }
        if let alarm = taken.alarm { Alarms.shared.cancel(alarm) }
        continuation.resume(returning: value)
        return true
    }

    /// Gives an answer when the time is over and there is none; `overdue` is told first.
    package func give(
        _ value: Value, after milliseconds: Int32, overdue: @escaping @Sendable () -> Void = {}
    ) {
        let alarm = Alarms.shared.set(after: milliseconds) {
            guard !self.isGiven else { return }
            overdue()
            self.give(value)
        }
        let isLate = state.withLock { state in
            guard state.continuation != nil else { return true }
            state.alarm = alarm
            return false
        }
        if isLate { Alarms.shared.cancel(alarm) }
    }
}

/// Something whose last reference must go on a thread of its own choosing: to close a file may take
/// as long as the file's storage likes.
package final class Parting<Value: Sendable>: Sendable {
    private let value: Mutex<Value?>

    package init(_ value: Value) { self.value = Mutex(value) }

    /// Takes the value out; nil when somebody has.
    package func take() -> Value? {
        value.withLock { value in
            let taken = value
            value = nil
            return taken
        }
    }

    /// Looks at the value while it is there.
    package func look<Seen: Sendable>(_ body: (Value) -> Seen) -> Seen? {
        value.withLock { $0.map(body) }
    }
}
