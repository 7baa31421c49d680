/// Which blocks of a disk were written: one bit a block, scanned a word at a time.
///
/// Blocks are numbered from 0; bits past the last block are always clear. Bits are kept in pages,
/// and a page without a dirty block takes no memory: a bitmap costs what was written, not what the
/// disk could hold.
package struct DirtyBitmap: Sendable {
    /// Words of one page: 4 KiB of bits, 32,768 blocks.
    package static let pageWords = 512
    /// Blocks of one page.
    static let pageBlocks = pageWords * 64

    /// Blocks covered.
    package let blockCount: Int
    /// Blocks whose bit is set.
    package private(set) var dirtyCount = 0
    /// The bits, 64 blocks a word, the lowest block in the lowest bit; an empty page is clean, any
    /// other has `pageWords` words.
    private var pages: [[UInt64]]

    /// A bitmap with every block clean.
    package init(blockCount: Int) {
        precondition(blockCount >= 0)
        self.blockCount = blockCount
        pages = [[UInt64]](repeating: [], count: Self.pageCount(blockCount: blockCount))
    }

    /// Whether the block is dirty.
    package func isDirty(_ block: Int) -> Bool {
        precondition(block >= 0 && block < blockCount, "block outside the bitmap")
        return word(block >> 6) >> UInt64(block & 63) & 1 == 1
    }

    /// The bits of 64 blocks, from block `64 * index` on.
    package func word(_ index: Int) -> UInt64 {
        let page = index / Self.pageWords
        return pages[page].isEmpty ? 0 : pages[page][index % Self.pageWords]
    }

    /// Marks a run of blocks dirty.
    package mutating func mark(_ blocks: Range<Int>) {
        precondition(blocks.lowerBound >= 0 && blocks.upperBound <= blockCount)
        forEachWord(of: blocks) { word, mask in
            let fresh = mask & ~word
            word |= mask
            return fresh.nonzeroBitCount
        }
    }

    /// Marks a run of blocks clean.
    package mutating func clear(_ blocks: Range<Int>) {
        precondition(blocks.lowerBound >= 0 && blocks.upperBound <= blockCount)
        forEachWord(of: blocks) { word, mask in
            let gone = mask & word
            word &= ~mask
            return -gone.nonzeroBitCount
        }
    }

    private mutating func forEachWord(
        of blocks: Range<Int>, _ body: (inout UInt64, UInt64) -> Int
    ) {
        var block = blocks.lowerBound
        while block < blocks.upperBound {
            let bit = block & 63
            let step = min(64 - bit, blocks.upperBound - block)
            let run = step == 64 ? UInt64.max : (UInt64(1) << UInt64(step)) - 1
            let page = block / Self.pageBlocks
            if pages[page].isEmpty { pages[page] = Self.cleanPage() }
            dirtyCount += body(&pages[page][(block >> 6) % Self.pageWords], run << UInt64(bit))
            block += step
        }
    }

    /// The first block at or after `start` whose state is `dirty`, or nil.
    package func firstBlock(from start: Int, dirty: Bool) -> Int? {
        precondition(start >= 0)
        guard start < blockCount else { return nil }
        var index = start >> 6
        var bits = (dirty ? word(index) : ~word(index)) & (UInt64.max << UInt64(start & 63))
        if bits == 0 {
            let last = (blockCount - 1) >> 6
            guard let found = firstWord(after: index, through: last, dirty: dirty) else {
                return nil
            }
            (index, bits) = found
        }
        let block = index << 6 + bits.trailingZeroBitCount
        return block < blockCount ? block : nil
    }

    /// The state of a block, and the first block after it, `last + 1` at most, whose state is
    /// another.
    package func run(from block: Int, through last: Int) -> (isDirty: Bool, end: Int) {
        precondition(block <= last && last < blockCount)
        let isDirty = isDirty(block)
        var index = block >> 6
        let own = word(index)
        var bits = (isDirty ? ~own : own) & (UInt64.max << UInt64(block & 63))
        if bits == 0 {
            guard let found = firstWord(after: index, through: last >> 6, dirty: !isDirty) else {
                return (isDirty, last + 1)
            }
            (index, bits) = found
        }
        return (isDirty, min(index << 6 + bits.trailingZeroBitCount, last + 1))
    }

    /// The first word after `index`, `last` at most, with a block whose state is `dirty`: its
    /// index, and the blocks of that state as set bits; clean pages are passed over whole.
    func firstWord(
        after index: Int, through last: Int, dirty: Bool
    ) -> (index: Int, bits: UInt64)? {
        var next = index + 1
        while next <= last {
            let page = next / Self.pageWords
            if pages[page].isEmpty {
                if !dirty { return (next, .max) }
                next = (page + 1) * Self.pageWords
                continue
            }
            let words = pages[page]
            let end = min(last - page * Self.pageWords, Self.pageWords - 1)
            for place in (next % Self.pageWords)...end {
                let bits = dirty ? words[place] : ~words[place]
                if bits != 0 { return (page * Self.pageWords + place, bits) }
            }
            next = (page + 1) * Self.pageWords
        }
        return nil
    }

    /// Adds every dirty block of another bitmap of the same size.
    package mutating func formUnion(_ other: DirtyBitmap) {
        precondition(other.blockCount == blockCount, "bitmaps of different size")
        for page in pages.indices where !other.pages[page].isEmpty {
            if pages[page].isEmpty {
                pages[page] = other.pages[page]
                dirtyCount += Self.dirtyCount(pages[page])
                continue
            }
            // Taken out, so that the page is changed in place.
            var merged = pages[page]
            pages[page] = []
            for place in 0..<Self.pageWords {
                let fresh = other.pages[page][place] & ~merged[place]
                merged[place] |= fresh
                dirtyCount += fresh.nonzeroBitCount
            }
            pages[page] = merged
        }
    }

    /// The same bitmap for a larger disk, what was added clean.
    package func widened(to newBlockCount: Int) -> DirtyBitmap {
        precondition(newBlockCount >= blockCount, "a bitmap does not shrink")
        var widened = DirtyBitmap(blockCount: newBlockCount)
        widened.pages.replaceSubrange(pages.indices, with: pages)
        widened.dirtyCount = dirtyCount
        return widened
    }

    /// The bitmap of a disk that grew: every block from the old end on is dirty.
    ///
    /// `LayerIdentity.grown` also knows whether the old last block was whole.
    package func grown(to newBlockCount: Int) -> DirtyBitmap {
        var grown = widened(to: newBlockCount)
        grown.mark(blockCount..<newBlockCount)
        return grown
    }
}

// MARK: Pages and words

extension DirtyBitmap {
    /// Words that hold a number of blocks.
    package static func wordCount(blockCount: Int) -> Int { (blockCount + 63) / 64 }

    /// Pages that hold a number of blocks.
    static func pageCount(blockCount: Int) -> Int { (blockCount + pageBlocks - 1) / pageBlocks }

    private static func cleanPage() -> [UInt64] { [UInt64](repeating: 0, count: pageWords) }

    private static func dirtyCount(_ page: [UInt64]) -> Int {
        page.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    /// Numbers of the pages that may have a dirty block, ascending; all others have none.
    package var dirtyPages: [Int] { pages.indices.filter { !pages[$0].isEmpty } }

    /// The words of a page; empty when it has no dirty block.
    package func page(_ number: Int) -> [UInt64] { pages[number] }

    /// Puts words in the place of a page without a dirty block; bits past the last block are
    /// dropped.
    package mutating func fill(page number: Int, with words: [UInt64]) {
        precondition(words.count == Self.pageWords && pages[number].isEmpty)
        pages[number] = words
        for place in 0..<Self.pageWords where (number + 1) * Self.pageBlocks > blockCount {
            let left = blockCount - (number * Self.pageWords + place) * 64
            let mask = left <= 0 ? 0 : left >= 64 ? .max : (UInt64(1) << UInt64(left)) - 1
            pages[number][place] &= mask
        }
        dirtyCount += Self.dirtyCount(pages[number])
    }
}

extension DirtyBitmap: Equatable {
    /// Whether both cover the same number of blocks and the same ones are dirty.
    package static func == (first: DirtyBitmap, second: DirtyBitmap) -> Bool {
        guard first.blockCount == second.blockCount, first.dirtyCount == second.dirtyCount else {
            return false
        }
        return first.pages.indices.allSatisfy { page in
            let (one, other) = (first.pages[page], second.pages[page])
            if one.isEmpty || other.isEmpty { return (one + other).allSatisfy { $0 == 0 } }
            return one == other
        }
    }
}
