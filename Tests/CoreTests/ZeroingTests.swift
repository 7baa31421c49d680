import Core
import Testing

@Suite("Zeroing by whole units")
struct ZeroingTests {
    @Test("steps cover the range, and whole units only are whole")
    func units() {
        let unit: UInt64 = 8
        for diskEnd: UInt64 in 16...26 {
            for start in 0..<diskEnd {
                for end in (start + 1)...diskEnd { walk(start..<end, unit, diskEnd) }
            }
        }
    }

    private func walk(_ range: Range<UInt64>, _ unit: UInt64, _ diskEnd: UInt64) {
        var position = range.lowerBound
        var freed: UInt64 = 0
        while position < range.upperBound {
            let step = Zeroing.wholeUnits(
                position..<range.upperBound, unit: unit, diskEnd: diskEnd)
            #expect(step.end > position && step.end <= range.upperBound)
            let isWhole =
                position.isMultiple(of: unit)
                && (step.end.isMultiple(of: unit) || step.end == diskEnd)
            #expect(step.isWhole == isWhole, "\(position)..<\(step.end) of \(range), \(diskEnd)")
            if step.isWhole { freed += step.end - position }
            position = step.end
        }
        let first = (range.lowerBound + unit - 1) / unit * unit
        let last = range.upperBound == diskEnd ? diskEnd : range.upperBound / unit * unit
        #expect(freed == (first < last ? last - first : 0), "\(range), \(diskEnd)")
    }

    @Test("where the unit is a byte a step stays whole")
    func bytes() {
        let step = Zeroing.wholeUnits(5..<77, unit: 1, diskEnd: 100)
        #expect(step.end == 77 && step.isWhole)
    }
}
