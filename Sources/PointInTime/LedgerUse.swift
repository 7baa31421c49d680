package import Tables

/// The words of a ledger as they were read: how they are distributed, and where there were any.
package struct LedgerContent: Sendable {
    package var tally = WordTally()
    package var extents: [Range<Int>] = []
    /// Where not all slots up to the last one are named: a closer look.
    package var split: Split?

    package init() {}

    /// Words that name slots, divided by these.
    package struct Split: Sendable {
        /// The slots below it, as they are named.
        package let limit: UInt32
        package let below: WordTally
        /// All others that are named.
        package let others: [UInt32]

        package init(limit: UInt32, below: WordTally, others: [UInt32]) {
            self.limit = limit
            self.below = below
            self.others = others
        }
    }

    /// The first slot that no word and none after it names.
    var slotsUsed: UInt32 {
        // A word of 2 names slot 0.
        tally.others == 0 ? 0 : tally.largest - 1
    }

    /// Whether as many slots are named as there are up to the last one.
    package var isDense: Bool { tally.others == Int(slotsUsed) }
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
        slotsUsed = content.slotsUsed
        guard slotsUsed <= slotLimit, tally.others <= Int(slotsUsed) else { return nil }
        if content.isDense {
            guard Self.isEachOnce(tally) else { return nil }
            freeSlots = FreeSlots()
        } else if let split = content.split, split.below.others == Int(split.limit),
            Self.isEachOnce(split.below)
        {
            // A kill leaves gaps only where the last copies went.
            var slots = SlotsTaken(from: split.limit, to: slotsUsed)
            for slot in split.others { guard slots.take(slot) else { return nil } }
            freeSlots = slots.free
        } else {
            guard let gaps = Self.gaps(content, words, slotsUsed) else { return nil }
            freeSlots = gaps
        }
    }

    /// Whether as many slots as there are words can be one of each: by their sum and that of their squares,
    /// which costs no second look at the words.
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
        var slots = SlotsTaken(from: 0, to: slotsUsed)
        for extent in content.extents {
            for index in extent {
                let word = words.load(index)
                guard word > 1, word != .max else { continue }
                guard slots.take(word - 2) else { return nil }
            }
        }
        return slots.free
    }
}

/// Which of a run of slots are in use.
private struct SlotsTaken {
    private let slots: Range<UInt32>
    private var bits: [UInt64]

    init(from first: UInt32, to end: UInt32) {
        slots = first..<end
        bits = [UInt64](repeating: 0, count: (slots.count + 63) / 64)
    }

    /// False for a slot that is in use already, or is none of them.
    mutating func take(_ slot: UInt32) -> Bool {
        guard slots.contains(slot) else { return false }
        let place = Int(slot - slots.lowerBound)
        guard bits[place / 64] >> UInt64(place % 64) & 1 == 0 else { return false }
        bits[place / 64] |= 1 << UInt64(place % 64)
        return true
    }

    /// Those that are not in use.
    var free: FreeSlots {
        var free = FreeSlots()
        for (index, word) in bits.enumerated() where word != .max {
            for bit in 0..<64 where word >> UInt64(bit) & 1 == 0 {
                let slot = slots.lowerBound + UInt32(index * 64 + bit)
                if slot < slots.upperBound { free.add(slot) }
            }
        }
        return free
    }
}
