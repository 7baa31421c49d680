import PointInTime
import ServerInterface
import Synchronization
import SystemLayer
import Tables

/// Where reads of a backup export leave their mark, one word a cell; a plain view, for the data
/// path.
struct ReadCells: Sendable, BitwiseCopyable {
    fileprivate let words: SharedWords
    fileprivate let shift: UInt64

    /// Marks what a client has read; any ring, and without a count: nothing is decided by it.
    func mark(_ offset: UInt64, _ count: Int) {
        guard count > 0 else { return }
        var cell = Int(offset >> shift)
        let end = min(Int((offset + UInt64(count) - 1) >> shift) + 1, words.count)
        while cell < end {
            if words.load(cell) == 0 { words.store(1, at: cell) }
            cell += 1
        }
    }
}

/// One disk of a job as people are shown it.
final class JobCells: Sendable {
    /// Words of a ledger that one look examines at most: all of a disk of 64 GiB.
    ///
    /// Of larger ones the next look goes on.
    static let wordsPerLook = 4 << 20

    private let geometry: CellGeometry
    private let storage: SharedWordsStorage
    private let scan: Mutex<Scan>

    /// How far the ledger has been looked through: what is preserved stays so.
    private struct Scan {
        var isPreserved: [Bool]
        /// The next cell to look at, and the clusters of it that have been looked at.
        var cell = 0
        var clusters = 0
    }

    init(sizeBytes: UInt64) throws(SystemFault) {
        geometry = CellGeometry(sizeBytes: sizeBytes)
        storage = try SharedWordsStorage(count: max(geometry.count, 1))
        scan = Mutex(Scan(isPreserved: [Bool](repeating: false, count: geometry.count)))
    }

    /// Valid while this object lives.
    var read: ReadCells { ReadCells(words: storage.view, shift: geometry.shift) }

    /// What is known of the job, in the cells of the disk as it is now.
    func map(_ jobID: String, _ ledger: LedgerView, on disk: CellGeometry) -> JobMap {
        let read = (0..<geometry.count).map { storage.view.load($0) != 0 }
        let preserved = scan.withLock { scan in
            Self.look(through: ledger, geometry, &scan, words: Self.wordsPerLook)
            return scan.isPreserved
        }
        return JobMap(
            id: jobID, preserved: widened(preserved, to: disk), read: widened(read, to: disk))
    }

    /// A disk that has grown has larger cells than the job's export, and more.
    private func widened(_ cells: [Bool], to disk: CellGeometry) -> [Bool] {
        var wide = [Bool](repeating: false, count: disk.count)
        for (cell, isSet) in cells.enumerated() where isSet {
            let start = UInt64(cell) << geometry.shift
            for place in disk.cells(start..<(start + geometry.cellBytes)) { wide[place] = true }
        }
        return wide
    }

    private static func look(
        through ledger: LedgerView, _ geometry: CellGeometry, _ scan: inout Scan, words: Int
    ) {
        let perCell = 1 << Int(geometry.shift - ClusterGeometry.shift)
        var left = words
        for _ in 0..<geometry.count {
            let first = scan.cell * perCell
            let count = min(perCell, ledger.geometry.clusterCount - first)
            while !scan.isPreserved[scan.cell], scan.clusters < count {
                guard left > 0 else { return }
                left -= 1
                scan.isPreserved[scan.cell] = ledger.isPreserved(first + scan.clusters)
                scan.clusters += 1
            }
            scan.clusters = 0
            scan.cell = (scan.cell + 1) % geometry.count
        }
    }
}
