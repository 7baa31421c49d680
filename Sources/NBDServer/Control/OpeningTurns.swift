import Synchronization

/// Lets a few disks be opened at a time, so that the first of many is there when a few could be.
///
/// All at once they would take each other's processors, and a machine would wait until nearly all
/// are open. A disk whose storage takes its time gives its turn to the next one meanwhile.
final class OpeningTurns: Sendable {
    private struct Waiting {
        let number: UInt64
        let isUrgent: @Sendable () -> Bool
        let comesEarly: Bool
        let begin: CheckedContinuation<Void, Never>
    }

    private struct State {
        var open: Set<UInt64> = []
        var waiting: [Waiting] = []
        var lastNumber: UInt64 = 0
    }

    private let together: Int
    private let turnMilliseconds: Int
    private let state = Mutex(State())

    /// `together` disks are opened at a time, not counting those that have taken
    /// `turnMilliseconds`.
    init(together: Int = 6, turnMilliseconds: Int = 20) {
        self.together = together
        self.turnMilliseconds = turnMilliseconds
    }

    /// Disks that wait for their turn.
    var waitingCount: Int { state.withLock { $0.waiting.count } }

    /// Runs `body` when its turn has come.
    ///
    /// Of those who wait the urgent ones come first, then those that come early; `isUrgent` must
    /// not wait.
    func run<Value>(
        isUrgent: @escaping @Sendable () -> Bool, comesEarly: Bool, _ body: () async -> Value
    ) async -> Value {
        let number = state.withLock { state in
            state.lastNumber += 1
            return state.lastNumber
        }
        await withCheckedContinuation { continuation in
            let isOpen = state.withLock { state in
                guard state.open.count >= together else {
                    state.open.insert(number)
                    return true
                }
                state.waiting.append(
                    Waiting(
                        number: number, isUrgent: isUrgent, comesEarly: comesEarly,
                        begin: continuation))
                return false
            }
            if isOpen { continuation.resume() }
        }
        let end = Task {
            try? await Task.sleep(for: .milliseconds(turnMilliseconds))
            if !Task.isCancelled { self.end(number) }
        }
        defer {
            end.cancel()
            self.end(number)
        }
        return await body()
    }

    private func end(_ number: UInt64) {
        let next = state.withLock { state -> Waiting? in
            guard state.open.remove(number) != nil, !state.waiting.isEmpty else { return nil }
            let place =
                state.waiting.firstIndex { $0.isUrgent() }
                ?? state.waiting.firstIndex { $0.comesEarly } ?? 0
            let next = state.waiting.remove(at: place)
            state.open.insert(next.number)
            return next
        }
        next?.begin.resume()
    }
}
