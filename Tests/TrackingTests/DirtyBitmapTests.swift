import Testing
import Tracking
import UnitSupport

/// The bitmap against a plain array of booleans.
@Suite("Dirty bitmap")
struct DirtyBitmapTests {
    private func bitmap(_ blocks: [Bool]) -> DirtyBitmap {
        var bitmap = DirtyBitmap(blockCount: blocks.count)
        for (block, isDirty) in blocks.enumerated() where isDirty {
            bitmap.mark(block..<(block + 1))
        }
        return bitmap
    }

    private func blocks(_ count: Int, _ pattern: Int) -> [Bool] {
        (0..<count).map { pattern >> $0 & 1 == 1 }
    }

    private func equals(_ bitmap: DirtyBitmap, _ blocks: [Bool]) -> Bool {
        bitmap.blockCount == blocks.count && bitmap.dirtyCount == blocks.count { $0 }
            && blocks.indices.allSatisfy { bitmap.isDirty($0) == blocks[$0] }
    }

    /// Every question about a range that the bitmap answers; the first wrong answer, or nil.
    private func wrongAnswer(
        _ bitmap: DirtyBitmap, _ blocks: [Bool], _ range: Range<Int>
    ) -> String? {
        let start = range.lowerBound
        for dirty in [false, true] {
            let expected = blocks[start...].firstIndex(of: dirty)
            guard bitmap.firstBlock(from: start, dirty: dirty) == expected else {
                return "firstBlock(from: \(start), dirty: \(dirty))"
            }
        }
        var marked = bitmap
        var cleared = bitmap
        var markedBlocks = blocks
        var clearedBlocks = blocks
        marked.mark(range)
        cleared.clear(range)
        for block in range {
            markedBlocks[block] = true
            clearedBlocks[block] = false
        }
        if !equals(marked, markedBlocks) { return "mark(\(range))" }
        if !equals(cleared, clearedBlocks) { return "clear(\(range))" }
        return nil
    }

    @Test("every bitmap of up to 10 blocks, every range", arguments: 0...10)
    func everySmallBitmap(count: Int) {
        for pattern in 0..<(1 << count) {
            let blocks = blocks(count, pattern)
            let bitmap = bitmap(blocks)
            #expect(equals(bitmap, blocks))
            for start in 0...count {
                for end in start...count {
                    if let wrong = wrongAnswer(bitmap, blocks, start..<end) {
                        Issue.record("\(wrong) of \(blocks)")
                        return
                    }
                }
            }
        }
    }

    @Test("the union of every two bitmaps of up to 6 blocks", arguments: 0...6)
    func everyUnion(count: Int) {
        for first in 0..<(1 << count) {
            for second in 0..<(1 << count) {
                var union = bitmap(blocks(count, first))
                union.formUnion(bitmap(blocks(count, second)))
                let expected = bitmap(blocks(count, first | second))
                guard union == expected else {
                    Issue.record("union of \(first) and \(second)")
                    return
                }
            }
        }
    }

    @Test("large bitmaps by seed", arguments: Seeds.all)
    func large(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        for count in [63, 64, 65, 128, 200, 1000] {
            var blocks = [Bool](repeating: false, count: count)
            var bitmap = DirtyBitmap(blockCount: count)
            for step in 0..<60 {
                let start = random.below(count + 1)
                let range = start..<(start + random.below(count - start + 1))
                if let wrong = wrongAnswer(bitmap, blocks, range) {
                    Issue.record("seed=\(seed) step=\(step): \(wrong) of \(count) blocks")
                    return
                }
                let isMark = random.below(2) == 0
                if isMark { bitmap.mark(range) } else { bitmap.clear(range) }
                for block in range { blocks[block] = isMark }
            }
        }
    }

    @Test("a union by seed counts every block once", arguments: Seeds.all)
    func largeUnion(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let first = (0..<777).map { _ in random.below(3) == 0 }
        let second = (0..<777).map { _ in random.below(3) == 0 }
        var union = bitmap(first)
        union.formUnion(bitmap(second))
        #expect(equals(union, zip(first, second).map { $0 || $1 }), "seed=\(seed)")
    }
}
