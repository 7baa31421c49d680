import IORing

/// What of scratch a ledger uses, derived from its words.
package struct LedgerUse: Sendable, Hashable {
    /// Clusters preserved, zero ones included, and those.
    package let preserved: Int
    package let zeros: Int
    /// The first slot that was never used.
    package let slotsUsed: UInt32
    /// Slots before it that hold nothing: their clusters were released, or their copies cut off.
    let freeSlots: FreeSlots

    init(
        _ content: LedgerFile.Content, _ words: SharedWords, slotLimit: UInt32
    ) throws(LedgerFileFault) {
        let tally = content.tally
        zeros = tally.ones
        preserved = tally.ones + tally.others
        // A word of 2 names slot 0.
        slotsUsed = tally.others == 0 ? 0 : tally.largest - 1
        guard slotsUsed <= slotLimit, tally.others <= Int(slotsUsed) else { throw .implausible }
        freeSlots =
            tally.others == Int(slotsUsed)
            ? FreeSlots() : try Self.gaps(content, words, slotsUsed)
    }

    private static func gaps(
        _ content: LedgerFile.Content, _ words: SharedWords, _ slotsUsed: UInt32
    ) throws(LedgerFileFault) -> FreeSlots {
        var isTaken = [UInt64](repeating: 0, count: (Int(slotsUsed) + 63) / 64)
        for extent in content.extents {
            for index in extent {
                let word = words.load(index)
                guard word > 1, word != .max else { continue }
                let slot = Int(word - 2)
                guard isTaken[slot / 64] >> UInt64(slot % 64) & 1 == 0 else {
                    throw .implausible
                }
                isTaken[slot / 64] |= 1 << UInt64(slot % 64)
            }
        }
        var free = FreeSlots()
        for slot in 0..<slotsUsed
        where isTaken[Int(slot) / 64] >> UInt64(slot % 64) & 1 == 0 { free.add(slot) }
        return free
    }
}
