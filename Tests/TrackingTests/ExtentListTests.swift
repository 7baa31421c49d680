import Testing
import Tracking
import UnitSupport

@Suite("Extent list")
struct ExtentListTests {
    private let longest = UInt64(ExtentList.lengthMax)

    private func add(_ length: UInt64, _ flags: UInt32, to list: inout ExtentList) -> Bool {
        list.append(length: length, flags: flags)
    }

    @Test("neighbours with equal flags merge, others do not")
    func merging() {
        var list = ExtentList(limit: 10)
        #expect(add(100, 1, to: &list))
        #expect(add(50, 1, to: &list))
        #expect(add(7, 0, to: &list))
        #expect(add(3, 1, to: &list))
        #expect(
            list.extents == [
                Extent(length: 150, flags: 1), Extent(length: 7, flags: 0),
                Extent(length: 3, flags: 1),
            ])
        #expect(list.coveredBytes == 160)
    }

    @Test("a run longer than 32 bits is split, and later runs still merge with its end")
    func splitting() {
        var list = ExtentList(limit: 10)
        #expect(add(longest * 2 + 5, 3, to: &list))
        #expect(list.extents.map { UInt64($0.length) } == [longest, longest, 5])
        #expect(add(longest, 3, to: &list))
        #expect(list.extents.map { UInt64($0.length) } == [longest, longest, longest, 5])
        #expect(list.coveredBytes == longest * 3 + 5)
        #expect(ExtentList.lengthMax % 65_536 == 0)
    }

    @Test("a merge fills an extent up to the longest and goes on in the next")
    func mergeOverflows() {
        var list = ExtentList(limit: 10)
        #expect(add(longest - 10, 1, to: &list))
        #expect(add(25, 1, to: &list))
        #expect(list.extents.map { UInt64($0.length) } == [longest, 15])
    }

    @Test("a full list takes more of its last flags and nothing else")
    func limit() {
        var list = ExtentList(limit: 2)
        #expect(add(1, 0, to: &list))
        #expect(!list.isFull)
        #expect(add(1, 1, to: &list))
        #expect(list.isFull)
        #expect(add(9, 1, to: &list))
        #expect(!add(1, 0, to: &list))
        #expect(list.extents == [Extent(length: 1, flags: 0), Extent(length: 10, flags: 1)])
        #expect(list.coveredBytes == 11)
    }

    @Test("what did not fit is cut off, what did is counted")
    func cutOff() {
        var list = ExtentList(limit: 1)
        #expect(!add(longest + 1, 0, to: &list))
        #expect(list.extents == [Extent(length: ExtentList.lengthMax, flags: 0)])
        #expect(list.coveredBytes == longest)
        list.removeAll()
        #expect(list.extents.isEmpty && list.coveredBytes == 0 && !list.isFull)
    }

    @Test("an empty run changes nothing")
    func empty() {
        var list = ExtentList(limit: 1)
        #expect(add(0, 4, to: &list))
        #expect(list.extents.isEmpty)
    }

    @Test("by seed: extents cover the runs in order, without gap", arguments: Seeds.all)
    func bySeed(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        for round in 0..<200 {
            let limit = 1 + random.below(12)
            var list = ExtentList(limit: limit)
            var runs: [(length: UInt64, flags: UInt32)] = []
            var isWhole = true
            while isWhole, runs.count < 20 {
                let isLong = random.below(8) == 0
                let length =
                    isLong ? random.next() % (longest * 3) : UInt64(random.below(5) * 65_536)
                runs.append((length, UInt32(random.below(3))))
                isWhole = list.append(length: length, flags: runs[runs.count - 1].flags)
            }
            let total = runs.reduce(0) { $0 + $1.length }
            let covered = list.extents.reduce(0) { $0 + UInt64($1.length) }
            #expect(covered == list.coveredBytes, "seed=\(seed) round=\(round)")
            #expect(isWhole ? covered == total : covered < total, "seed=\(seed) round=\(round)")
            #expect(list.extents.count <= limit, "seed=\(seed) round=\(round)")
            #expect(!list.extents.contains { $0.length == 0 }, "seed=\(seed) round=\(round)")
            #expect(agree(list.extents, runs), "seed=\(seed) round=\(round)")
        }
    }

    /// Whether the extents say of each byte what the runs say.
    private func agree(
        _ extents: [Extent], _ runs: [(length: UInt64, flags: UInt32)]
    ) -> Bool {
        var run = 0
        var left = runs.first?.length ?? 0
        for extent in extents {
            var length = UInt64(extent.length)
            while length > 0 {
                while left == 0 {
                    run += 1
                    guard run < runs.count else { return false }
                    left = runs[run].length
                }
                guard runs[run].flags == extent.flags else { return false }
                let step = min(left, length)
                left -= step
                length -= step
            }
        }
        return true
    }
}
