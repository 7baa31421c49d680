import Testing
import Tracking
import UnitSupport

@Suite("Runs of a bitmap as extents")
struct BitmapRunsTests {
    /// The extents of a byte range, block by block: what the runs must be.
    private func expected(
        _ bitmap: DirtyBitmap, _ shift: UInt64, _ range: Range<UInt64>, limit: Int
    ) -> [Extent] {
        var list = ExtentList(limit: limit)
        var position = range.lowerBound
        while position < range.upperBound {
            let end = min((position >> shift + 1) << shift, range.upperBound)
            let isDirty = bitmap.isDirty(Int(position >> shift))
            if !list.append(length: end - position, flags: isDirty ? 1 : 0) { break }
            position = end
        }
        return list.extents
    }

    /// Gathers in steps of `runs`, as a request that gives others a turn does.
    private func gathered(
        _ bitmap: DirtyBitmap, _ shift: UInt64, _ range: Range<UInt64>, limit: Int, runs: Int
    ) -> ExtentList {
        var list = ExtentList(limit: limit)
        var position = range.lowerBound
        while position < range.upperBound {
            let next = list.append(
                runsOf: bitmap, granularityShift: shift, from: position, to: range.upperBound,
                dirtyFlags: 1, runs: runs)
            if next == position { break }
            position = next
        }
        #expect(position == range.lowerBound + list.coveredBytes)
        return list
    }

    @Test("every bitmap of 7 blocks, every byte range, every limit")
    func everySmallBitmap() {
        let shift: UInt64 = 2
        for pattern in 0..<(1 << 7) {
            var bitmap = DirtyBitmap(blockCount: 7)
            for block in 0..<7 where pattern >> block & 1 == 1 { bitmap.mark(block..<(block + 1)) }
            for start in UInt64(0)..<27 {
                for end in (start + 1)...27 {
                    let limit = Int(end % 7) + 1
                    let list = gathered(
                        bitmap, shift, start..<end, limit: limit, runs: Int(start % 3) + 1)
                    if list.extents != expected(bitmap, shift, start..<end, limit: limit) {
                        Issue.record("pattern \(pattern), bytes \(start)..<\(end), limit \(limit)")
                    }
                }
            }
        }
    }

    @Test("runs that end at, before and behind the borders of words", arguments: 0..<8)
    func wordBorders(seed: Int) {
        var random = SplitMix64(seed: UInt64(seed))
        for _ in 0..<200 {
            let count = Int.random(in: 1...400, using: &random)
            var bitmap = DirtyBitmap(blockCount: count)
            for _ in 0..<Int.random(in: 0...6, using: &random) {
                let start = Int.random(in: 0..<count, using: &random)
                let edge = min((start / 64 + Int.random(in: 1...4, using: &random)) * 64, count)
                bitmap.mark(start..<max(edge - Int.random(in: 0...1, using: &random), start))
            }
            let start = UInt64.random(in: 0..<UInt64(count) << 16, using: &random)
            let range = start..<UInt64.random(in: (start + 1)...UInt64(count) << 16, using: &random)
            let list = gathered(
                bitmap, 16, range, limit: 500, runs: Int.random(in: 1...5, using: &random))
            #expect(list.extents == expected(bitmap, 16, range, limit: 500))
        }
    }

    @Test("a run longer than 32 bits is split and may be cut off inside")
    func longRuns() {
        let bitmap = DirtyBitmap(blockCount: 3 << 16)
        let size = UInt64(3) << 32
        #expect(
            gathered(bitmap, 16, 0..<size, limit: 10, runs: 3).extents
                == expected(bitmap, 16, 0..<size, limit: 10))
        let cut = gathered(bitmap, 16, 5..<size, limit: 2, runs: 3)
        #expect(cut.coveredBytes == UInt64(ExtentList.lengthMax) * 2)
    }
}
