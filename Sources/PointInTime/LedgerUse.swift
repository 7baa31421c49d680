package import Tables

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
    ///
    /// `slots` says which of so many slots the words name, a bit for each; it is asked only when
    /// some hold nothing.
    package init?<Fault>(
        _ tally: WordTally, slotLimit: UInt32, slots: (Int) throws(Fault) -> [UInt64]
    ) throws(Fault) {
        zeros = tally.ones
        preserved = tally.ones + tally.others
        // A word of 2 names slot 0.
        slotsUsed = tally.others == 0 ? 0 : tally.largest - 1
        guard slotsUsed <= slotLimit, tally.others <= Int(slotsUsed) else { return nil }
        if tally.others == Int(slotsUsed) {
            guard Self.isEachOnce(tally) else { return nil }
            freeSlots = FreeSlots()
        } else {
            let taken = try slots(Int(slotsUsed))
            // Fewer, if two words name one.
            let count = taken.reduce(0) { $0 + $1.nonzeroBitCount }
            guard count == tally.others else { return nil }
            freeSlots = Self.gaps(taken, slotsUsed)
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

    private static func gaps(_ taken: [UInt64], _ slotsUsed: UInt32) -> FreeSlots {
        var free = FreeSlots()
        for (index, word) in taken.enumerated() where word != .max {
            var isFree = ~word
            while isFree != 0 {
                let low = isFree.trailingZeroBitCount
                let count = (~(isFree >> UInt64(low))).trailingZeroBitCount
                let first = index * 64 + low
                let end = min(first + count, Int(slotsUsed))
                if first < end { free.add(UInt32(first)..<UInt32(end)) }
                isFree &= ~((UInt64.max >> UInt64(64 - count)) << UInt64(low))
            }
        }
        return free
    }
}
