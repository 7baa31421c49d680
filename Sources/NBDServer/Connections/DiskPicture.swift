import Disk
import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// What was found out for a disk's picture and does not change with every write: where its source
/// has data, and what its sealed layers say.
final class DiskPicture: Sendable {
    private enum Limit {
        /// A look at the source's holes is good for so long at least, and for so many times the
        /// time that it took.
        static let goodNanoseconds: UInt64 = 5_000_000_000
        static let goodPerCost: UInt64 = 50
        /// A look that takes longer is given up.
        static let lookNanoseconds: UInt64 = 500_000_000
        static let lookupsPerCheck = 64
    }

    private struct Holes {
        var data: [Bool]?
        var geometry: CellGeometry
        var goodUntil: UInt64
    }

    /// By layer, oldest first, the recording one left out.
    private struct Sealed {
        var chain: LayerChain
        var geometry: CellGeometry
        var cells: [[Bool]]
    }

    private let holes = Mutex<Holes?>(nil)
    private let sealed = Mutex<Sealed?>(nil)

    // MARK: Holes

    /// Which cells hold data; nil when the storage takes too long to say.
    ///
    /// On a thread that may wait.
    func data(of source: RawSource, _ geometry: CellGeometry) -> [Bool]? {
        let start = MonotonicClock.now()
        let known = holes.withLock { $0 }
        if let known, known.geometry == geometry, start < known.goodUntil { return known.data }
        let data = Self.look(at: source, geometry, until: start + Limit.lookNanoseconds)
        let end = MonotonicClock.now()
        let good = max(Limit.goodNanoseconds, (end - start) * Limit.goodPerCost)
        holes.withLock { $0 = Holes(data: data, geometry: geometry, goodUntil: end + good) }
        return data
    }

    private static func look(
        at source: RawSource, _ geometry: CellGeometry, until deadline: UInt64
    ) -> [Bool]? {
        var data = [Bool](repeating: false, count: geometry.count)
        let end = min(UInt64(geometry.count) << geometry.shift, source.sizeBytes)
        var position: UInt64 = 0
        var endsHole = false
        var lookups = 0
        while position < end {
            lookups += 1
            if lookups.isMultiple(of: Limit.lookupsPerCheck), MonotonicClock.now() > deadline {
                return nil
            }
            let run = source.allocation(at: position, end: end, endsHole: endsHole)
            guard run.isData else {
                position = run.end
                endsHole = true
                continue
            }
            let cells = geometry.cells(position..<run.end)
            for cell in cells { data[cell] = true }
            // Nothing more is to be learnt of a cell that holds data.
            position = max(run.end, UInt64(cells.upperBound) << geometry.shift)
            endsHole = false
        }
        return data
    }

    // MARK: Changes

    /// By cell, the newest checkpoint since which it was changed, counted from 1; nil when a sealed
    /// layer cannot be read.
    ///
    /// On a thread that may wait.
    func changed(_ store: TrackingStore, _ geometry: CellGeometry) -> [Int]? {
        let chain = store.record.chain
        guard !chain.checkpoints.isEmpty else { return [Int](repeating: 0, count: geometry.count) }
        var known = sealed.withLock { $0 }
        if known?.chain != chain || known?.geometry != geometry {
            guard let cells = Self.read(store, geometry) else { return nil }
            known = Sealed(chain: chain, geometry: geometry, cells: cells)
            sealed.withLock { [known] in $0 = known }
        }
        var changed = [Int](repeating: 0, count: geometry.count)
        let recording = Self.cells(
            of: store.recording.snapshot(), store.granularityShift, geometry)
        for (layer, cells) in ((known?.cells ?? []) + [recording]).enumerated() {
            for cell in cells.indices where cells[cell] { changed[cell] = layer + 1 }
        }
        return changed
    }

    private static func read(_ store: TrackingStore, _ geometry: CellGeometry) -> [[Bool]]? {
        do throws(TrackingFault) {
            var layers: [[Bool]] = []
            for layer in store.record.chain.layers.dropLast() {
                layers.append(
                    cells(of: try store.sealed(layer.serial), store.granularityShift, geometry))
            }
            return layers
        } catch {
            return nil
        }
    }

    /// The cells with a dirty block.
    static func cells(
        of bitmap: DirtyBitmap, _ shift: UInt64, _ geometry: CellGeometry
    ) -> [Bool] {
        var marked = [Bool](repeating: false, count: geometry.count)
        var next = 0
        while let block = bitmap.firstBlock(from: next, dirty: true) {
            let start = UInt64(block) << shift
            let cells = geometry.cells(start..<start + (1 << shift))
            for cell in cells { marked[cell] = true }
            guard let last = cells.last else { break }
            // The first block that is not wholly in cells that are marked.
            next = max(block + 1, Int((UInt64(last + 1) << geometry.shift) >> shift))
        }
        return marked
    }
}
