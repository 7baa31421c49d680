import SystemLayer
import Tables
import Testing
import UnitSupport

@Suite("Slot table")
struct SlotTableTests {
    @Test("slots are reused, lowest first")
    func reuse() {
        var table = SlotTable<String>(capacity: 3)
        let first = [table.insert("a"), table.insert("b"), table.insert("c")]
        let full = table.isFull
        let second = first[1]
        let removed = table.remove(second)
        let isGone = !table.contains(second)
        let again = table.insert("d")
        let text = table[second]
        table[second] += "!"
        let changed = table[second]
        let outside = table.contains(.init(3)) || table.contains(.init(-1))
        let all = table.indices.map(\.number)
        #expect(first.map(\.number) == [0, 1, 2] && all == [0, 1, 2])
        #expect(full && isGone && removed == "b")
        #expect(again == second)
        #expect(text == "d" && changed == "d!" && !outside)
    }

    private final class Counter: Sendable {
        let latch: Latch
        init(_ latch: Latch) { self.latch = latch }
        deinit { latch.arrive() }
    }

    @Test("every element is released exactly once, the ones left behind as well")
    func release() throws {
        let latch = Latch(count: 5)
        do {
            var table = SlotTable<Counter>(capacity: 4)
            for _ in 0..<4 { _ = table.insert(Counter(latch)) }
            table.remove(.init(2))
            _ = table.insert(Counter(latch))
            let isEarly = latch.wait(milliseconds: 0)
            let count = table.count
            #expect(!isEarly && count == 4)
        }
        #expect(latch.wait(milliseconds: 0))
    }

    @Test("by seed: agrees with a dictionary", arguments: Seeds.all)
    func bySeed(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var table = SlotTable<Int>(capacity: 40)
        var model: [Int: Int] = [:]
        for step in 0..<2000 {
            if !table.isFull, random.below(2) == 0 {
                let slot = table.insert(step).number
                #expect(model.updateValue(step, forKey: slot) == nil, "seed=\(seed) step=\(step)")
            } else if let slot = model.keys.sorted().randomElement(using: &random) {
                let value = table.remove(.init(slot))
                #expect(model.removeValue(forKey: slot) == value, "seed=\(seed) step=\(step)")
            }
            let count = table.count
            #expect(count == model.count, "seed=\(seed) step=\(step)")
        }
    }
}
