import SystemLayer
import Tables
import Testing
import UnitSupport

@testable import PointInTime

@Suite("Words of a left ledger, counted many at a time")
struct LedgerReadingTests {
    /// Runs of slots, single ones, and words that name none, in lengths about those of blocks.
    private static func words(_ random: inout SplitMix64) -> [UInt32] {
        var words: [UInt32] = []
        for _ in 0..<random.below(12) {
            let count = [1, 3, 64, 1023, 1024, 1025, 2300][random.below(7)]
            let first = UInt32(random.below(2_000_000)) + 2
            switch random.below(5) {
            case 0: words += [UInt32](repeating: 0, count: count)
            case 1: words += (0..<count).map { _ in [0, 1, 2, .max, .max - 1][random.below(5)] }
            case 2: words += (0..<count).map { _ in UInt32(random.below(3_000_000)) }
            case 3: words += (0..<count).map { first + UInt32($0) }
            default:
                // One that is not like its neighbours.
                words += (0..<count).map { first + UInt32($0) }
                words[words.count - 1 - random.below(count)] = UInt32(random.below(9))
            }
        }
        return words + [.max - 1025, .max - 1024, 5]
    }

    private static func storage(_ words: [UInt32]) throws -> SharedWordsStorage {
        let storage = try SharedWordsStorage(count: words.count)
        for (index, word) in words.enumerated() { storage.view.store(word, at: index) }
        return storage
    }

    private static func part(of words: [UInt32], _ random: inout SplitMix64) -> Range<Int> {
        let first = random.below(words.count)
        return first..<first + random.below(words.count - first + 1)
    }

    @Test("words are counted as one by one", arguments: 0..<60)
    func counts(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let words = Self.words(&random)
        let part = Self.part(of: words, &random)
        var expected = WordTally()
        for word in words[part] {
            expected.zeros += word == 0 ? 1 : 0
            expected.ones += word == 1 ? 1 : 0
            expected.full += word == .max ? 1 : 0
            if word != .max { expected.largest = max(expected.largest, word) }
            guard word > 1, word != .max else { continue }
            expected.others += 1
            expected.sum &+= UInt64(word - 2)
            expected.squares &+= UInt64(word - 2) &* UInt64(word - 2)
        }
        var found = WordTally()
        try Self.storage(words).count(part, into: &found)
        #expect(found == expected)
    }

    @Test("slots are marked as one by one, those beyond the bits left out", arguments: 0..<60)
    func marks(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let words = Self.words(&random)
        let part = Self.part(of: words, &random)
        let length = random.below(40_000)
        var expected = [UInt64](repeating: 0, count: length)
        for word in words[part] where word > 1 && Int(word) - 2 < length * 64 {
            expected[Int(word - 2) / 64] |= 1 << UInt64((word - 2) % 64)
        }
        var found = [UInt64](repeating: 0, count: length)
        try Self.storage(words).mark(part, in: &found)
        #expect(found == expected)
    }

    @Test("slots that no word names are free, and none else", arguments: 0..<60)
    func gaps(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let used = 1 + random.below(500)
        var taken = (0..<used).map { _ in random.below(5) > 0 }
        // Whole words of both, and a last slot that is in use.
        for slot in random.below(used)..<used where slot < 200 { taken[slot] = seed % 2 == 0 }
        taken[used - 1] = true
        let slots = taken.indices.filter { taken[$0] }
        var tally = WordTally()
        for slot in slots { tally.add(ascendingFrom: UInt32(slot) + 2, count: 1) }
        var bits = [UInt64](repeating: 0, count: (used + 63) / 64)
        for slot in slots { bits[slot / 64] |= 1 << UInt64(slot % 64) }
        let use = try #require(LedgerUse(tally, slotLimit: 600) { _ in bits })
        #expect(use.slotsUsed == UInt32(used) && use.preserved == slots.count)
        let free = use.freeSlots.runs.flatMap { $0.map(Int.init) }
        #expect(free == taken.indices.filter { !taken[$0] })
        #expect(use.freeSlots.count == UInt32(free.count))
        // A word that names the slot of another.
        guard let twice = slots.first, slots.count < used else { return }
        bits[twice / 64] &= ~(1 << UInt64(twice % 64))
        #expect(LedgerUse(tally, slotLimit: 600) { _ in bits } == nil)
    }
}
