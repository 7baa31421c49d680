import Testing
import UnitSupport

@testable import Pushing

@Suite("What a pushed backup holds")
struct BackupContentTests {
    private typealias Run = BackupContent.Run

    @Test(
        "a unit is data or changed where a byte of it is; the rest is left out", arguments: 1...40)
    func model(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let unit = [512, 4096, 65536][Int(random.next() % 3)]
        let start = random.next() % 8 * BackupContent.stretchBytes
        let size = 1 + random.next() % UInt64(unit * 90)
        let range = start..<start + size
        let allocation = extents(of: range, unit, flags: [0, 1, 2, 3], &random)
        let changes =
            random.next() % 2 == 0 ? nil : extents(of: range, unit, flags: [0, 1], &random)
        let runs = BackupContent.runs(
            in: range, unitBytes: unit, allocation: allocation, changes: changes)

        var wanted: [Run] = []
        for offset in stride(from: range.lowerBound, to: range.upperBound, by: unit) {
            let end = min(offset + UInt64(unit), range.upperBound)
            func holds(_ extents: [NBDPeer.Extent], _ isSo: (UInt32) -> Bool) -> Bool {
                extents.contains {
                    isSo($0.flags) && $0.offset < end && $0.offset + $0.count > offset
                }
            }
            guard changes.map({ holds($0) { $0 & 1 != 0 } }) ?? true else { continue }
            let isZero = !holds(allocation) { $0 & 2 == 0 }
            if let last = wanted.last, last.isZero == isZero, last.end == offset {
                wanted[wanted.count - 1].count += end - offset
            } else {
                wanted.append(Run(offset: offset, count: end - offset, isZero: isZero))
            }
        }
        #expect(runs == wanted)

        // Windows of one unit, or of a few, come to the same.
        let step = UInt64(unit) * (1 + random.next() % 5)
        var joined: [Run] = []
        for lower in stride(from: range.lowerBound, to: range.upperBound, by: Int(step)) {
            let window = lower..<min(lower + step, range.upperBound)
            for run in BackupContent.part(of: runs, in: window) {
                #expect(window.lowerBound <= run.offset && run.end <= window.upperBound)
                if let last = joined.last, last.isZero == run.isZero, last.end == run.offset {
                    joined[joined.count - 1].count += run.count
                } else {
                    joined.append(run)
                }
            }
        }
        #expect(joined == runs)
    }

    // Answers of a server cover the range without gaps, in pieces of any length, and may reach past
    // its end.
    private func extents(
        of range: Range<UInt64>, _ unit: Int, flags: [UInt32], _ random: inout SplitMix64
    ) -> [NBDPeer.Extent] {
        var found: [NBDPeer.Extent] = []
        var offset = range.lowerBound
        while offset < range.upperBound {
            let count = 1 + random.next() % UInt64(unit * 7)
            found.append(
                .init(
                    offset: offset, count: count,
                    flags: flags[Int(random.next() % UInt64(flags.count))]))
            offset += count
        }
        return found
    }
}
