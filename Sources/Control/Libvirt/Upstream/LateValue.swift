import Synchronization

/// A value that comes later, and that who waits for it may stop waiting for without losing it.
final class LateValue<Value: Sendable>: Sendable {
    private struct State {
        var value: Value?
        var waiters: [Int: CheckedContinuation<Value?, Never>] = [:]
        var lastNumber = 0
    }

    private let state = Mutex(State())

    /// The value, once it is there.
    var value: Value? { state.withLock { $0.value } }

    /// The first one counts.
    func set(_ value: Value) {
        let waiters = state.withLock { state -> [CheckedContinuation<Value?, Never>] in
            guard state.value == nil else { return [] }
            state.value = value
            defer { state.waiters = [:] }
            return Array(state.waiters.values)
        }
        for waiter in waiters { waiter.resume(returning: value) }
    }

    /// The value, or nil when it has not come within the time.
    func value(within time: Duration) async -> Value? {
        let number = state.withLock { state in
            state.lastNumber += 1
            return state.lastNumber
        }
        var timer: Task<Void, Never>?
        defer { timer?.cancel() }
        return await withCheckedContinuation { continuation in
            let value = state.withLock { state -> Value? in
                if state.value == nil { state.waiters[number] = continuation }
                return state.value
            }
            if let value { return continuation.resume(returning: value) }
            // Not before there is somebody to tell that the time is over.
            timer = Task {
                try? await Task.sleep(for: time)
                self.giveUp(number)
            }
        }
    }

    private func giveUp(_ number: Int) {
        state.withLock { $0.waiters.removeValue(forKey: number) }?.resume(returning: nil)
    }
}
