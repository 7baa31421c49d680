import Simulation
import Testing

/// A few histories in a debug build, with every check of the compiler; `dev/simulate` runs
/// thousands.
@Suite("Histories in the simulator")
struct HistoryTests {
    @Test("P1 to P6: histories over storage that breaks, with kills and losses of power")
    func seeds() {
        for seed in 1...150 {
            let world = History.run(StepList(seed: UInt64(seed), count: History.steps))
            #expect(world.violation == nil, "seed \(seed)")
        }
    }

    @Test("a seed decides everything: a history that is lived again is the same")
    func deterministic() {
        for seed in 1...20 {
            let list = StepList(seed: UInt64(seed), count: History.steps)
            let first = History.run(list, trace: true)
            let second = History.run(list, trace: true)
            #expect(first.trace == second.trace, "seed \(seed)")
        }
    }

    @Test("steps that are left out are written and read as text")
    func text() {
        let list = StepList(seed: 1, taken: [1, 2, 3, 7, 9, 10])
        #expect(list.text == "1-3,7,9-10")
        #expect(StepList.steps(list.text) == list.taken)
        #expect(StepList.steps("3-1") == nil && StepList.steps("x") == nil)
    }

    @Test("a failure is shrunk to a history that still fails")
    func shrinks() throws {
        let seeds = 1...200 as ClosedRange<UInt64>
        let failing = seeds.lazy.map { StepList(seed: $0, count: History.steps) }.first {
            History.run($0, canary: .triesSyncAgain).violation != nil
        }
        let list = try #require(failing)
        let short = History.shrink(list, canary: .triesSyncAgain, attempts: 300)
        #expect(short.taken.count < list.taken.count / 2)
        #expect(History.run(short, canary: .triesSyncAgain).violation != nil)
    }
}
