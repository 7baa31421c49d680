/// Which blocks of a disk were written: one bit a block, scanned a word at a time.
///
/// Blocks are numbered from 0; bits past the last block are always clear.
package struct DirtyBitmap: Sendable, Equatable {
    /// Blocks covered.
    package let blockCount: Int
    /// Blocks whose bit is set.
    package private(set) var dirtyCount = 0
    private var words: [UInt64]

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
