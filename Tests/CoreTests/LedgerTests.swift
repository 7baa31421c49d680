import PointInTime
import ScratchFiles
import Testing

private let cluster = UInt64(ClusterGeometry.clusterBytes)

@Suite("Clusters of a disk")
struct ClusterGeometryTests {
    @Test("the last cluster may be cut short")
    func partialLast() {
        let geometry = ClusterGeometry(sizeBytes: 2 * cluster + 1)
        #expect(geometry.clusterCount == 3)
        #expect(geometry.bytes(in: 0..<2) == 2 * Int(cluster))
        #expect(geometry.bytes(in: 2..<3) == 1)
        #expect(geometry.bytes(in: 1..<3) == Int(cluster) + 1)
        #expect(ClusterGeometry(sizeBytes: 2 * cluster).clusterCount == 2)
        #expect(ClusterGeometry(sizeBytes: 1).clusterCount == 1)
        #expect(ClusterGeometry(sizeBytes: 1 << 62).clusterCount == 1 << 48)
    }

    @Test("clusters that a byte range touches, one byte before and after each edge")
    func touching() {
        for first in 0..<4 {
            for last in first..<4 {
                let start = UInt64(first) * cluster
                let end = UInt64(last + 1) * cluster
                for offset in [start, start + 1, start + cluster - 1] {
                    for limit in [end - cluster + 1, end - 1, end] where limit > offset {
                        let touched = ClusterGeometry.clusters(
                            touching: offset, length: limit - offset)
                        #expect(touched == first..<(last + 1))
                    }
                }
            }
        }
    }
}

@Suite("Clusters within a range")
struct ClustersWithinTests {
    @Test("only clusters that lie wholly in the range, one byte before and after each edge")
    func within() {
        for size in [3 * cluster, 3 * cluster + 1, 3 * cluster + 4095] {
            let geometry = ClusterGeometry(sizeBytes: size)
            let edges = (0...3).map { UInt64($0) * cluster }
            let places = Set(
                edges.flatMap { [$0 == 0 ? 0 : $0 - 1, $0, $0 + 1] } + [size, size - 1]
            ).filter { $0 <= size }
            for start in places {
                for end in places where end >= start {
                    let expected = (0..<geometry.clusterCount).filter { number in
                        let first = ClusterGeometry.start(of: number)
                        return first >= start && min(first + cluster, size) <= end && start < end
                    }
                    let found = geometry.clusters(within: start, length: end - start)
                    #expect(Array(found) == expected, "\(start)..<\(end) of \(size)")
                }
            }
        }
    }
}

@Suite("Ledger and read plan")
struct LedgerTests {
    @Test("a place is what was published; closing is for ever and moves no place")
    func places() throws {
        let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: 4 * cluster))
        let view = ledger.view
        view.publish(1, .zero)
        view.publish(2, .slot(0))
        view.publish(3, .slot(LedgerView.slotsMax - 1))
        let places = (0..<4).map { view.place(of: $0) }
        #expect(places == [.source, .zero, .slot(0), .slot(LedgerView.slotsMax - 1)])
        #expect((0..<4).map { view.isPreserved($0) } == [false, true, true, true])
        #expect(!view.isClosed)
        view.close()
        view.close()
        #expect(view.isClosed)
        #expect((0..<4).map { view.place(of: $0) } == places)
    }

    @Test("a released cluster is released for ever, and says where it was")
    func released() throws {
        let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: 5 * cluster))
        let view = ledger.view
        view.publish(1, .zero)
        view.publish(2, .slot(0))
        view.publish(3, .slot(LedgerView.slotsMax - 1))
        #expect(view.firstReleased(in: 0..<5) == nil)
        let places = (0..<4).map { view.release($0) }
        #expect(places == [.source, .zero, .slot(0), .slot(LedgerView.slotsMax - 1)])
        #expect((0..<4).allSatisfy { view.release($0) == .released && view.isPreserved($0) })
        #expect(view.place(of: 4) == .source)
        #expect(view.firstReleased(in: 2..<5) == 2 && view.firstReleased(in: 4..<5) == nil)
        #expect(view.firstPreserved(in: 0..<1) == 0)
        #expect(view.step(from: 512, to: 5 * cluster).count == Int(4 * cluster) - 512)
    }

    @Test("firstPreserved, for every ledger of 6 clusters and every run")
    func firstPreserved() throws {
        for pattern in 0..<64 {
            let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: 6 * cluster))
            for index in 0..<6 where pattern >> index & 1 == 1 {
                ledger.view.publish(index, .zero)
            }
            for start in 0...6 {
                for end in start...6 {
                    let expected = (start..<end).first { pattern >> $0 & 1 == 1 }
                    #expect(ledger.view.firstPreserved(in: start..<end) == expected)
                }
            }
        }
    }

    @Test("steps: runs of source, zeros and neighbouring slots, to the byte")
    func steps() throws {
        let size = 8 * cluster + 100
        let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: size))
        let view = ledger.view
        view.publish(2, .zero)
        view.publish(3, .zero)
        view.publish(4, .slot(6))
        view.publish(5, .slot(7))
        view.publish(6, .slot(9))
        view.publish(7, .slot(8))
        view.publish(8, .slot(9))
        var steps: [ReadStep] = []
        var offset: UInt64 = 5
        while offset < size {
            steps.append(view.step(from: offset, to: size))
            offset += UInt64(steps[steps.count - 1].count)
        }
        let length = Int(cluster)
        #expect(
            steps == [
                ReadStep(place: .source, offset: 5, count: 2 * length - 5),
                ReadStep(place: .zero, offset: 2 * cluster, count: 2 * length),
                ReadStep(place: .slot(6), offset: 4 * cluster, count: 2 * length),
                ReadStep(place: .slot(9), offset: 6 * cluster, count: length),
                ReadStep(place: .slot(8), offset: 7 * cluster, count: length + 100),
            ])
    }

    @Test("a step ends at the request's end, inside a cluster as well")
    func stepEnd() throws {
        let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: 3 * cluster))
        ledger.view.publish(1, .slot(4))
        #expect(ledger.view.step(from: 7, to: 8).count == 1)
        let step = ledger.view.step(from: cluster + 10, to: cluster + 30)
        #expect(step == ReadStep(place: .slot(4), offset: cluster + 10, count: 20))
        let position = LedgerView.scratchPosition(of: step.offset, firstSlot: 4)
        #expect(position == 4 * cluster + 10)
    }

    @Test("words taken are put back by rewind")
    func rewind() throws {
        let ledger = try Ledger(geometry: ClusterGeometry(sizeBytes: 2 * cluster))
        ledger.view.publish(0, .slot(3))
        let words = ledger.words
        ledger.view.publish(1, .zero)
        ledger.view.close()
        ledger.rewind(to: words)
        #expect(ledger.words == words)
        #expect(!ledger.view.isClosed && !ledger.view.isPreserved(1))
    }
}
