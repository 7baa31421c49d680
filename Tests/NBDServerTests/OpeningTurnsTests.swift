import Synchronization
import Testing

@testable import NBDServer

@Suite struct OpeningTurnsTests {
    /// What has begun, in its order, and what may end.
    private final class Record: Sendable {
        private let state = Mutex((begun: [Int](), mayEnd: Set<Int>()))

        var begun: [Int] { state.withLock { $0.begun } }

        func end(_ numbers: Int...) { state.withLock { $0.mayEnd.formUnion(numbers) } }

        func run(_ number: Int) async {
            state.withLock { $0.begun.append(number) }
            while !state.withLock({ $0.mayEnd.contains(number) }) {
                try? await Task.sleep(for: .milliseconds(1))
            }
        }

        func await(_ count: Int) async {
            while begun.count < count { try? await Task.sleep(for: .milliseconds(1)) }
        }
    }

    private let record = Record()

    private func ask(
        _ number: Int, of turns: OpeningTurns, isUrgent: Bool = false, comesEarly: Bool = false
    ) -> Task<Void, Never> {
        Task { [record] in
            await turns.run(isUrgent: { isUrgent }, comesEarly: comesEarly) {
                await record.run(number)
            }
        }
    }

    @Test("the urgent ones come first, then the early ones, then the others as they came")
    func order() async {
        let turns = OpeningTurns(together: 1, turnMilliseconds: 600_000)
        var tasks = [ask(0, of: turns)]
        await record.await(1)
        for (number, urgent, early) in [
            (1, false, false), (2, false, true), (3, true, false), (4, false, false),
        ] {
            tasks.append(ask(number, of: turns, isUrgent: urgent, comesEarly: early))
            while turns.waitingCount < number { await Task.yield() }
        }
        #expect(record.begun == [0])
        record.end(0, 1, 2, 3, 4)
        for task in tasks { await task.value }
        #expect(record.begun == [0, 3, 2, 1, 4])
    }

    @Test("P6: storage that does not answer keeps nobody from their turn")
    func stuck() async {
        let turns = OpeningTurns(together: 2, turnMilliseconds: 5)
        let tasks = (0..<9).map { ask($0, of: turns) }
        await record.await(9)
        #expect(turns.waitingCount == 0)
        record.end(0, 1, 2, 3, 4, 5, 6, 7, 8)
        for task in tasks { await task.value }
    }
}
