package import Tables

/// The words of a ledger as they were read: how they are distributed, and where there were any.
package struct LedgerContent: Sendable {
    package var tally = WordTally()
    package var extents: [Range<Int>] = []

    package init() {}
}

/// What of scratch a ledger uses, derived from its words.
package struct LedgerUse: Sendable, Hashable {
    /// Clusters preserved, zero ones included, and those.
    package let preserved: Int
    package let zeros: Int
    /// The first slot that was never used.
    package let slotsUsed: UInt32
    /// Slots before it that hold nothing: their clusters were released, or their copies cut off.
    let freeSlots: FreeSlots

    /// Nil when the words contradict each other, or a scratch of `slotLimit` slots.
    package init?(_ content: LedgerContent, _ words: SharedWords, slotLimit: UInt32) {
        let tally = content.tally
        zeros = tally.ones
        preserved = tally.ones + tally.others
        // A word of 2 names slot 0.
        slotsUsed = tally.others == 0 ? 0 : tally.largest - 1
        guard slotsUsed <= slotLimit, tally.others <= Int(slotsUsed) else { return nil }
        if tally.others == Int(slotsUsed) {
            guard Self.isEachOnce(tally) else { return nil }
            freeSlots = FreeSlots()
        } else {
            guard let gaps = Self.gaps(content, words, slotsUsed) else { return nil }
            freeSlots = gaps
        }
    }

    /// Whether as many slots as there are words can be one of each: by their sum and that of their
    /// squares, which costs no second look at the words.
    private static func isEachOnce(_ tally: WordTally) -> Bool {
        let count = UInt128(tally.others)
        guard count > 0 else { return true }
        let sum = count * (count - 1) / 2
        let squares = (count - 1) * count * (2 * count - 1) / 6
        return tally.sum == UInt64(truncatingIfNeeded: sum)
            && tally.squares == UInt64(truncatingIfNeeded: squares)
    }

    private static func gaps(
        _ content: LedgerContent, _ words: SharedWords, _ slotsUsed: UInt32
    ) -> FreeSlots? {
        var isTaken = [UInt64](repeating: 0, count: (Int(slotsUsed) + 63) / 64)
        for extent in content.extents {
            for index in extent {
                let word = words.load(index)
                guard word > 1, word != .max else { continue }
                let slot = Int(word - 2)
                guard isTaken[slot / 64] >> UInt64(slot % 64) & 1 == 0 else { return nil }
                isTaken[slot / 64] |= 1 << UInt64(slot % 64)
            }
        }
        var free = FreeSlots()
        for slot in 0..<slotsUsed
        where isTaken[Int(slot) / 64] >> UInt64(slot % 64) & 1 == 0 { free.add(slot) }
        return free
    }
}
