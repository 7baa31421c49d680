extension ExtentList {
    /// Appends the runs of equal blocks in a byte range of a dirty bitmap, at most `runs` of them;
    /// returns the position up to which the list now covers the disk.
    ///
    /// `position < end`, and both lie in the bitmap's disk; `end` may lie inside the last block.
    /// The position returned is `end`, or less when the list is full or `runs` are used up. Words
    /// are examined once each: a reply of many short runs is what this is for.
    package mutating func append(
        runsOf bitmap: DirtyBitmap, granularityShift shift: UInt64, from position: UInt64,
        to end: UInt64, dirtyFlags: UInt32, runs limit: Int
    ) -> UInt64 {
        let lastBlock = Int((end - 1) >> shift) + 1
        precondition(position < end && lastBlock <= bitmap.blockCount)
        let lastWord = (lastBlock - 1) >> 6
        let block = Int(position >> shift)
        var index = block >> 6
        var isDirty = bitmap.isDirty(block)
        // Bits that differ from the current run's state are set, up to the run's start cleared.
        var word = bitmap.word(index)
        word = (isDirty ? ~word : word) & (.max << UInt64(block & 63))
        var start = position
        var left = limit
        while left > 0, start < end, !isFull {
            if word == 0,
                let found = bitmap.firstWord(
                    after: index, through: lastWord, dirty: !isDirty)
            {
                (index, word) = found
            }
            let bit = word.trailingZeroBitCount
            let next = word == 0 ? end : min(UInt64(index << 6 + bit) << shift, end)
            let covered = coveredBytes
            guard append(length: next - start, flags: isDirty ? dirtyFlags : 0) else {
                return start + (coveredBytes - covered)
            }
            start = next
            isDirty.toggle()
            // 64 when the word is used up: a smart shift by as much leaves nothing.
            word = ~word & (.max << UInt64(bit))
            left -= 1
        }
        return start
    }
}
