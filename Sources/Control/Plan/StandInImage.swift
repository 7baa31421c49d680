/// A qcow2 image that replaces a disk wherever a tool insists on a file: it holds nothing, has
/// the disk's size, and reading it reads the disk through its live export.
///
/// It is marked as corrupt, which qemu takes as: may be read, never written. So no machine can be
/// started on it, and nothing that was meant for the disk is lost in it. Fields and numbers are
/// those of the qcow2 format, version 3 (`docs/interop/qcow2` of qemu).
package struct StandInImage: Sendable, Hashable {
    /// Bytes of the disk, as qemu sees it: in whole sectors.
    package let sizeBytes: UInt64
    /// NBD URI of the disk's live export.
    package let backing: String
    /// One cluster has two to the power of this many bytes.
    let clusterBits: UInt64

    /// Most bytes of the name of a backing file.
    package static let backingBytesMax = 1023
    /// Largest table of the first level that qemu takes: 32 MiB of eight bytes each.
    private static let entriesMax: UInt64 = 1 << 22
    private static let headerBytes = 112

    /// Nil for a disk that no qcow2 image can stand in for.
    package init?(sizeBytes: UInt64, backing: String) {
        guard sizeBytes <= 1 << 62, backing.utf8.count <= Self.backingBytesMax else { return nil }
        self.sizeBytes = (sizeBytes + 511) / 512 * 512
        self.backing = backing
        var bits: UInt64 = 16
        while Self.entries(self.sizeBytes, bits) > Self.entriesMax {
            bits += 1
            guard bits <= 21 else { return nil }
        }
        clusterBits = bits
    }

    /// A table of the second level fills a cluster with eight bytes for each of its clusters.
    private static func entries(_ sizeBytes: UInt64, _ clusterBits: UInt64) -> UInt64 {
        let covered = UInt64(1) << (2 * clusterBits - 3)
        return sizeBytes / covered + (sizeBytes.isMultiple(of: covered) ? 0 : 1)
    }

    private var clusterBytes: UInt64 { 1 << clusterBits }
    private var entries: UInt64 { max(Self.entries(sizeBytes, clusterBits), 1) }
    private var tableClusters: UInt64 { (entries * 8 + clusterBytes - 1) / clusterBytes }

    /// Bytes of the whole file; what `pieces` does not fill is zeros.
    package var fileBytes: UInt64 { (3 + tableClusters) * clusterBytes }

    /// The file's content and where it goes: the header, and reference counts.
    ///
    /// The table of the first level is all zeros: nothing is here, everything is in the backing
    /// file.
    package var pieces: [(offset: UInt64, bytes: [UInt8])] {
        var table: [UInt8] = []
        Self.append(2 * clusterBytes, to: &table)
        var counts: [UInt8] = []
        for _ in 0..<(3 + tableClusters) { counts += [0, 1] }
        return [(0, header), (clusterBytes, table), (2 * clusterBytes, counts)]
    }

    private var header: [UInt8] {
        let extensions = Self.extensions
        let name = UInt64(Self.headerBytes + extensions.count)
        var bytes: [UInt8] = [0x51, 0x46, 0x49, 0xFB]
        Self.append(UInt32(3), to: &bytes)
        Self.append(name, to: &bytes)
        Self.append(UInt32(backing.utf8.count), to: &bytes)
        Self.append(UInt32(clusterBits), to: &bytes)
        Self.append(sizeBytes, to: &bytes)
        // Not encrypted.
        Self.append(UInt32(0), to: &bytes)
        Self.append(UInt32(entries), to: &bytes)
        Self.append(3 * clusterBytes, to: &bytes)
        Self.append(clusterBytes, to: &bytes)
        Self.append(UInt32(1), to: &bytes)
        // No snapshots.
        Self.append(UInt32(0), to: &bytes)
        Self.append(UInt64(0), to: &bytes)
        // Incompatible features: corrupt. Compatible and automatically cleared ones: none.
        Self.append(UInt64(1 << 1), to: &bytes)
        Self.append(UInt64(0), to: &bytes)
        Self.append(UInt64(0), to: &bytes)
        // Counts have sixteen bits.
        Self.append(UInt32(4), to: &bytes)
        Self.append(UInt32(Self.headerBytes), to: &bytes)
        // Compression by zlib, and padding.
        Self.append(UInt64(0), to: &bytes)
        return bytes + extensions + Array(backing.utf8)
    }

    /// The backing file's format, which must never be guessed from a machine's data; then the end.
    private static var extensions: [UInt8] {
        var bytes: [UInt8] = []
        append(UInt32(0xE279_2ACA), to: &bytes)
        append(UInt32(3), to: &bytes)
        bytes += Array("raw".utf8) + [0, 0, 0, 0, 0]
        append(UInt64(0), to: &bytes)
        return bytes
    }

    private static func append(_ value: some FixedWidthInteger, to bytes: inout [UInt8]) {
        for shift in stride(from: value.bitWidth - 8, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }
}
