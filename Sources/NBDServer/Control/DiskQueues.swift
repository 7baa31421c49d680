import BoundedCalls
import ServerInterface
import Synchronization

/// Gives calls the disks that they need for themselves, first come, first served.
///
/// A call gets all of its disks or waits for all of them; it never waits for a disk that it does
/// not need. So no two calls wait for each other, and a call that is stuck holds up those alone
/// that want one of its disks.
final class DiskQueues: Sendable {
    private struct Waiting {
        let number: UInt64
        let disks: Set<DiskID>
        let answer: Answer<Bool>
    }

    private struct State {
        var owned: Set<DiskID> = []
        var waiting: [Waiting] = []
        var lastNumber: UInt64 = 0
    }

    private let state = Mutex(State())

    /// Calls that wait for disks.
    var waitingCount: Int { state.withLock { $0.waiting.count } }

    /// Waits for the disks; false when the time is over first.
    func take(_ disks: Set<DiskID>, milliseconds: Int32) async -> Bool {
        await withCheckedContinuation { continuation in
            let answer = Answer<Bool>(continuation)
            let number: UInt64? = state.withLock { state in
                state.lastNumber += 1
                state.waiting.append(
                    Waiting(number: state.lastNumber, disks: disks, answer: answer))
                return Self.serve(&state).contains(state.lastNumber) ? nil : state.lastNumber
            }
            guard let number else {
                answer.give(true)
                return
            }
            answer.give(false, after: milliseconds) { self.forget(number) }
        }
    }

    /// Gives the disks of a `take` that was true to those who wait.
    func giveBack(_ disks: Set<DiskID>) {
        let served = state.withLock { state in
            state.owned.subtract(disks)
            let before = state.waiting
            let numbers = Self.serve(&state)
            return before.filter { numbers.contains($0.number) }
        }
        for waiting in served where !waiting.answer.give(true) {
            // Its time was over in the same moment.
            giveBack(waiting.disks)
        }
    }

    /// Lets everyone through whose disks are free and not wanted by somebody before.
    private static func serve(_ state: inout State) -> Set<UInt64> {
        var served: Set<UInt64> = []
        var taken = state.owned
        var rest: [Waiting] = []
        for waiting in state.waiting {
            if taken.isDisjoint(with: waiting.disks) {
                served.insert(waiting.number)
                state.owned.formUnion(waiting.disks)
            } else {
                rest.append(waiting)
            }
            taken.formUnion(waiting.disks)
        }
        state.waiting = rest
        return served
    }

    private func forget(_ number: UInt64) {
        let served = state.withLock { state in
            state.waiting.removeAll { $0.number == number }
            let before = state.waiting
            let numbers = Self.serve(&state)
            return before.filter { numbers.contains($0.number) }
        }
        for waiting in served where !waiting.answer.give(true) { giveBack(waiting.disks) }
    }
}
