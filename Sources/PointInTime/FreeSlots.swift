/// Slots of scratch that were used and are free again, in runs of neighbours.
///
/// The last to come are the first to go. At most one run a slot, so never more memory than the
/// ledger's own.
struct FreeSlots: Hashable {
    private(set) var runs: [Range<UInt32>] = []
    private(set) var count: UInt32 = 0

    /// Adds a slot that is not among them.
    mutating func add(_ slot: UInt32) {
        count += 1
        if let last = runs.last {
            if last.upperBound == slot {
                runs[runs.count - 1] = last.lowerBound..<(slot + 1)
                return
            }
            if slot + 1 == last.lowerBound {
                runs[runs.count - 1] = slot..<last.upperBound
                return
            }
        }
        runs.append(slot..<(slot + 1))
    }

    /// Adds slots of which none is among them, behind all that are.
    mutating func add(_ slots: Range<UInt32>) {
        count += UInt32(slots.count)
        if let last = runs.last, last.upperBound == slots.lowerBound {
            runs[runs.count - 1] = last.lowerBound..<slots.upperBound
        } else {
            runs.append(slots)
        }
    }

    /// Takes neighbouring slots, at most so many; nil when none is free.
    mutating func take(atMost wanted: Int) -> Range<UInt32>? {
        guard let last = runs.popLast() else { return nil }
        let taken = min(UInt32(wanted), UInt32(last.count))
        if taken < last.count { runs.append((last.lowerBound + taken)..<last.upperBound) }
        count -= taken
        return last.lowerBound..<(last.lowerBound + taken)
    }
}
