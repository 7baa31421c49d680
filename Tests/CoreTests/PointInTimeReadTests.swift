import Core
import PointInTime
import ScratchFiles
import Testing

/// Read, then check, step by step; every order of events is walked in `InterleavingTests`.
@Suite("Reads of a point in time")
struct PointInTimeReadTests {
    private let cluster = UInt64(ClusterGeometry.clusterBytes)

    private func ledger() throws -> Ledger {
        try Ledger(geometry: ClusterGeometry(sizeBytes: 8 * cluster))
    }

    @Test("a live export is read from its source, and nothing is checked")
    func live() {
        var read = PointInTimeRead(100..<5000)
        #expect(read.next(nil) == .source(count: 4900))
        read.got(900, nil)
        #expect(read.next(nil) == .source(count: 4000))
        read.got(4000, nil)
        #expect(read.next(nil) == .done)
    }

    @Test("P1: what is preserved while it is read is read again, from scratch")
    func overtaken() throws {
        let ledger = try ledger()
        let view = ledger.view
        var read = PointInTimeRead(10..<(3 * cluster))
        #expect(read.next(view) == .source(count: Int(3 * cluster - 10)))
        view.publish(1, .slot(6))
        read.got(Int(3 * cluster - 10), view)
        #expect(read.position == cluster)
        #expect(read.next(view) == .scratch(position: 6 * cluster, count: Int(cluster)))
        #expect(read.isOfScratch)
        read.got(Int(cluster), view)
        #expect(read.next(view) == .source(count: Int(cluster)))
        view.publish(2, .zero)
        read.got(5, view)
        #expect(read.next(view) == .zeros(count: Int(cluster)))
        read.got(Int(cluster), view)
        #expect(read.next(view) == .askScratch)
        read.asked()
        #expect(read.next(view) == .done)
    }

    @Test("P5: bytes of scratch count as long as nobody has let go of their cluster")
    func released() throws {
        let ledger = try ledger()
        let view = ledger.view
        view.publish(0, .slot(0))
        view.publish(1, .slot(1))
        var read = PointInTimeRead(0..<(2 * cluster))
        #expect(read.next(view) == .scratch(position: 0, count: Int(2 * cluster)))
        _ = view.release(1)
        read.got(Int(2 * cluster), view)
        #expect(read.position == cluster)
        #expect(read.next(view) == .released)
    }

    @Test("P5: a slot whose cluster was let go of meanwhile says nothing of scratch")
    func slotUsedAgain() throws {
        let ledger = try ledger()
        let view = ledger.view
        for cluster in [0, 1, 3] { view.publish(cluster, .slot(UInt32(cluster))) }
        var read = PointInTimeRead(0..<(4 * cluster))
        #expect(read.next(view) == .scratch(position: 0, count: Int(2 * cluster)))
        #expect(!read.isOvertaken(view))
        // Not read by this step.
        _ = view.release(3)
        #expect(!read.isOvertaken(view))
        _ = view.release(1)
        #expect(read.isOvertaken(view))
        #expect(read.next(view) == .scratch(position: 0, count: Int(cluster)))
        #expect(!read.isOvertaken(view))
        read.got(Int(cluster), view)
        #expect(read.next(view) == .released)
    }

    @Test("P5: nothing of a broken job is handed out, whatever was read")
    func closed() throws {
        let ledger = try ledger()
        var read = PointInTimeRead(0..<cluster)
        #expect(read.next(ledger.view) == .source(count: Int(cluster)))
        read.got(Int(cluster), ledger.view)
        ledger.view.close()
        #expect(read.next(ledger.view) == .closed)
    }

    @Test("P1: what was learnt of the source's allocation counts where nothing is preserved by now")
    func extents() throws {
        let ledger = try ledger()
        let view = ledger.view
        view.publish(1, .zero)
        view.publish(2, .slot(0))
        _ = view.release(3)
        func extent(_ from: UInt64, isData: Bool) -> PointInTimeRead.Extent {
            PointInTimeRead.extent((from * cluster)..<(8 * cluster), isData: isData, under: view)
        }
        for isData in [true, false] {
            #expect(extent(0, isData: isData).isData == isData)
            #expect(extent(0, isData: isData).count == cluster)
            #expect(!extent(1, isData: isData).isData)
            #expect(extent(2, isData: isData).isData)
            #expect(extent(3, isData: isData).isData)
            #expect(extent(4, isData: isData).isData == isData)
            #expect(extent(4, isData: isData).count == 4 * cluster)
        }
        let live = PointInTimeRead.extent(3..<70, isData: true, under: nil)
        #expect(live.count == 67 && live.isData)
    }
}
