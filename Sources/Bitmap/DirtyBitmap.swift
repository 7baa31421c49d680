/// Which blocks of a disk were written: one bit a block, scanned a word at a time.
///
/// Blocks are numbered from 0; bits past the last block are always clear.
package struct DirtyBitmap: Sendable, Equatable {
    /// Blocks covered.
    package let blockCount: Int
    /// Blocks whose bit is set.
    package private(set) var dirtyCount = 0
    /// The bits, 64 blocks a word, the lowest block in the lowest bit; bits past the last block are
    /// clear.
    package private(set) var words: [UInt64]

    /// A bitmap with every block clean.
    package init(blockCount: Int) {
        precondition(blockCount >= 0)
        self.blockCount = blockCount
        words = [UInt64](repeating: 0, count: (blockCount + 63) / 64)
    }

    /// Whether the block is dirty.
    package func isDirty(_ block: Int) -> Bool {
        precondition(block >= 0 && block < blockCount, "block outside the bitmap")
        return words[block >> 6] >> UInt64(block & 63) & 1 == 1
    }

    /// Marks a run of blocks dirty.
    package mutating func mark(_ blocks: Range<Int>) {
        precondition(blocks.lowerBound >= 0 && blocks.upperBound <= blockCount)
        forEachWord(of: blocks) { words, index, mask in
            let fresh = mask & ~words[index]
            words[index] |= mask
            return fresh.nonzeroBitCount
        }
    }

    /// Marks a run of blocks clean.
    package mutating func clear(_ blocks: Range<Int>) {
        precondition(blocks.lowerBound >= 0 && blocks.upperBound <= blockCount)
        forEachWord(of: blocks) { words, index, mask in
            let gone = mask & words[index]
            words[index] &= ~mask
            return -gone.nonzeroBitCount
        }
    }

    private mutating func forEachWord(
        of blocks: Range<Int>, _ body: (inout [UInt64], Int, UInt64) -> Int
    ) {
        var block = blocks.lowerBound
        while block < blocks.upperBound {
            let bit = block & 63
            let step = min(64 - bit, blocks.upperBound - block)
            let run = step == 64 ? UInt64.max : (UInt64(1) << UInt64(step)) - 1
            dirtyCount += body(&words, block >> 6, run << UInt64(bit))
            block += step
        }
    }

    /// The first block at or after `start` whose state is `dirty`, or nil.
    package func firstBlock(from start: Int, dirty: Bool) -> Int? {
        precondition(start >= 0)
        guard start < blockCount else { return nil }
        let block = firstBlock(from: start, to: blockCount, dirty: dirty)
        return block < blockCount ? block : nil
    }

    /// The run of equal blocks that begins at `start`: its state and its end (exclusive), at most
    /// `end`.
    ///
    /// Looks at no block past `end`: the cost is bounded by what is asked, not by the disk.
    package func run(from start: Int, to end: Int) -> (dirty: Bool, end: Int) {
        precondition(start < end && end <= blockCount)
        let dirty = isDirty(start)
        return (dirty, firstBlock(from: start, to: end, dirty: !dirty))
    }

    /// The first block of a state in a range that is not empty, or `end`.
    private func firstBlock(from start: Int, to end: Int, dirty: Bool) -> Int {
        let last = (end - 1) >> 6
        var index = start >> 6
        let flip: UInt64 = dirty ? 0 : .max
        var word = (words[index] ^ flip) & (UInt64.max << UInt64(start & 63))
        while word == 0 {
            if index == last { return end }
            index += 1
            word = words[index] ^ flip
        }
        return min((index << 6) + word.trailingZeroBitCount, end)
    }

    /// Adds every dirty block of another bitmap of the same size.
    package mutating func formUnion(_ other: DirtyBitmap) {
        precondition(other.blockCount == blockCount, "bitmaps of different size")
        for index in words.indices {
            let fresh = other.words[index] & ~words[index]
            words[index] |= fresh
            dirtyCount += fresh.nonzeroBitCount
        }
    }
}

// MARK: Words

extension DirtyBitmap {
    /// Words that hold a number of blocks.
    package static func wordCount(blockCount: Int) -> Int { (blockCount + 63) / 64 }

    /// A bitmap from its words, lowest block first; bits past the last block are dropped.
    ///
    /// There is one word for every 64 blocks begun, no more and no fewer.
    package init(words: [UInt64], blockCount: Int) {
        precondition(blockCount >= 0)
        precondition(words.count == Self.wordCount(blockCount: blockCount))
        self.blockCount = blockCount
        self.words = words
        if blockCount & 63 != 0 { self.words[words.count - 1] &= Self.tailMask(blockCount) }
        dirtyCount = self.words.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    /// Adds every block that is set in words of the same number of blocks, a mapped layer's for
    /// example; bits past the last block are dropped.
    package mutating func formUnion(words other: Span<UInt64>) {
        precondition(other.count == words.count, "bitmaps of different size")
        for index in words.indices {
            var fresh = other[index] & ~words[index]
            if index == words.count - 1, blockCount & 63 != 0 { fresh &= Self.tailMask(blockCount) }
            words[index] |= fresh
            dirtyCount += fresh.nonzeroBitCount
        }
    }

    /// The bitmap of a disk that grew: every block from the old end on is dirty.
    ///
    /// `LayerIdentity.grown` also knows whether the old last block was whole.
    package func grown(to newBlockCount: Int) -> DirtyBitmap {
        precondition(newBlockCount >= blockCount, "a bitmap does not shrink")
        let added = Self.wordCount(blockCount: newBlockCount) - words.count
        var grown = DirtyBitmap(
            words: words + [UInt64](repeating: 0, count: added), blockCount: newBlockCount)
        grown.mark(blockCount..<newBlockCount)
        return grown
    }

    /// The bits of the last word that stand for blocks; `blockCount` is no multiple of 64.
    private static func tailMask(_ blockCount: Int) -> UInt64 {
        (UInt64(1) << UInt64(blockCount & 63)) - 1
    }

    /// The same bitmap for a larger disk, what was added clean.
    package func widened(to newBlockCount: Int) -> DirtyBitmap {
        precondition(newBlockCount >= blockCount, "a bitmap does not shrink")
        let added = Self.wordCount(blockCount: newBlockCount) - words.count
        return DirtyBitmap(
            words: words + [UInt64](repeating: 0, count: added), blockCount: newBlockCount)
    }
}
