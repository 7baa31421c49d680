/// How a disk divides into clusters, the unit of copy-before-write.
package struct ClusterGeometry: Sendable, Hashable, BitwiseCopyable {
    /// log2 of the cluster size.
    package static let shift: UInt64 = 14
    /// Bytes of a cluster, 16 KiB: what one copy moves at least, and what a slot of scratch holds.
    package static let clusterBytes = 1 << Int(shift)

    /// Bytes of the disk.
    package let sizeBytes: UInt64
    /// Clusters, the last of which may be cut short by the disk's end.
    package let clusterCount: Int

    package init(sizeBytes: UInt64) {
        self.sizeBytes = sizeBytes
        clusterCount = Int((sizeBytes + UInt64(Self.clusterBytes) - 1) >> Self.shift)
    }

    /// The cluster that holds a byte.
    package static func cluster(of byte: UInt64) -> Int { Int(byte >> shift) }

    /// The first byte of a cluster.
    package static func start(of cluster: Int) -> UInt64 { UInt64(cluster) << shift }

    /// Whether a cluster begins at a byte.
    package static func isEdge(_ byte: UInt64) -> Bool { byte & UInt64(clusterBytes - 1) == 0 }

    /// The clusters that a byte range touches; the range is not empty.
    package static func clusters(touching offset: UInt64, length: UInt64) -> Range<Int> {
        precondition(length > 0)
        return cluster(of: offset)..<(cluster(of: offset + length - 1) + 1)
    }

    /// The clusters that lie wholly within a byte range of the disk, whose end closes the last one.
    package func clusters(within offset: UInt64, length: UInt64) -> Range<Int> {
        let end = offset + length
        let first = Self.cluster(of: offset + UInt64(Self.clusterBytes - 1))
        let last = end == sizeBytes ? clusterCount : Self.cluster(of: end)
        return first < last ? first..<last : 0..<0
    }

    /// Bytes of the disk in a run of clusters.
    package func bytes(in clusters: Range<Int>) -> Int {
        let end = min(Self.start(of: clusters.upperBound), sizeBytes)
        return Int(end - Self.start(of: clusters.lowerBound))
    }
}
