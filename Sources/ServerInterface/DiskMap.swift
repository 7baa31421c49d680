/// How a disk divides into the cells of its picture: at most 1024 of one size, a power of two.
package struct CellGeometry: Sendable, Hashable, BitwiseCopyable {
    /// More than a screen shows, and few enough to look at all of them.
    package static let cellsMax = 1024
    /// No cell is smaller than a cluster of copy-before-write, 16 KiB.
    private static let shiftMin: UInt64 = 14

    /// log2 of a cell's bytes.
    package let shift: UInt64
    /// Cells, the last of which may be cut short by the disk's end.
    package let count: Int

    /// The cells of a disk of at most 2^62 bytes.
    package init(sizeBytes: UInt64) {
        var shift = Self.shiftMin
        while Self.count(sizeBytes, shift) > UInt64(Self.cellsMax) { shift += 1 }
        self.shift = shift
        count = Int(Self.count(sizeBytes, shift))
    }

    private static func count(_ sizeBytes: UInt64, _ shift: UInt64) -> UInt64 {
        sizeBytes >> shift + (sizeBytes & ((1 << shift) - 1) == 0 ? 0 : 1)
    }

    /// Bytes of a cell.
    package var cellBytes: UInt64 { 1 << shift }

    /// The cells that a range of bytes touches, as far as there are such cells.
    package func cells(_ bytes: Range<UInt64>) -> Range<Int> {
        guard !bytes.isEmpty else { return 0..<0 }
        let first = min(bytes.lowerBound >> shift, UInt64(count))
        let last = min((bytes.upperBound - 1) >> shift + 1, UInt64(count))
        return Int(first)..<Int(max(first, last))
    }
}

/// What a disk looks like at a moment, cell by cell: a picture for people, on which nothing rests.
package struct DiskMap: Sendable, Hashable {
    package var sizeBytes: UInt64
    package var geometry: CellGeometry
    /// Whether a cell holds data; the others are holes.
    ///
    /// Nil while the storage has not said.
    package var data: [Bool]?
    /// The disk's checkpoints, oldest first.
    package var checkpoints: [String] = []
    /// The newest checkpoint since which a cell was changed, counted from 1; 0: since none of them.
    ///
    /// Nil when changes are not recorded, or what they were cannot be read.
    package var changed: [Int]?
    /// The disk's part in jobs that run.
    package var jobs: [JobMap] = []

    package init(sizeBytes: UInt64) {
        self.sizeBytes = sizeBytes
        geometry = CellGeometry(sizeBytes: sizeBytes)
    }
}

/// What a job has made of a disk's cells.
package struct JobMap: Sendable, Hashable {
    /// The job's UUID.
    package var id: String
    /// Whether old content of a cell is kept in scratch, or known to have been zeros.
    package var preserved: [Bool]
    /// Whether clients have read anything in a cell since this server serves the job.
    package var read: [Bool]

    package init(id: String, preserved: [Bool], read: [Bool]) {
        self.id = id
        self.preserved = preserved
        self.read = read
    }
}
