/// A disk as a guest's driver sees it.
package struct BlockDescription: Equatable, Sendable {
    /// Size in bytes; a partial sector at the end is not visible.
    package var sizeBytes: UInt64
    /// Bytes of a logical block: a power of two from 512 to 65536.
    package let blockBytes: UInt32
    /// Bytes of a physical block: the logical one, or a power of two above it.
    package let physicalBlockBytes: UInt32
    /// Preferred I/O size in bytes; zero if unknown.
    package let optimalBytes: UInt32
    /// Whether the disk is read-only.
    package let isReadOnly: Bool
    /// Number of queues: 1 to `VhostLimits.queuesMax`.
    package let queueCount: Int
    /// The answer to GET_ID, cut to 20 bytes.
    package let identity: String

    /// A disk with the given properties, which must be in range.
    package init(
        sizeBytes: UInt64, blockBytes: UInt32 = 512, physicalBlockBytes: UInt32 = 4096,
        optimalBytes: UInt32 = 0, isReadOnly: Bool = false, queueCount: Int, identity: String
    ) {
        precondition(queueCount >= 1 && queueCount <= VhostLimits.queuesMax, "1 to 256 queues")
        precondition(
            Self.isBlock(blockBytes) && Self.isBlock(physicalBlockBytes)
                && blockBytes <= physicalBlockBytes, "blocks are powers of two")
        self.sizeBytes = sizeBytes
        self.blockBytes = blockBytes
        self.physicalBlockBytes = physicalBlockBytes
        self.optimalBytes = optimalBytes
        self.isReadOnly = isReadOnly
        self.queueCount = queueCount
        self.identity = identity
    }

    /// Whether this is a valid block size.
    package static func isBlock(_ byteCount: UInt32) -> Bool {
        byteCount >= 512 && byteCount <= 65536 && byteCount & (byteCount - 1) == 0
    }

    /// Sectors of 512 bytes.
    package var capacity: UInt64 { sizeBytes / BlockShape.sectorBytes }

    /// All features that are offered: of the device, its queues and the protocol.
    package var features: DeviceFeatures {
        var features: DeviceFeatures = [
            .segmentsMax, .blockSize, .flush, .topology, .multiQueue, .indirectDescriptors,
            .eventIndex, .protocolFeatures, .version1,
        ]
        features.formUnion(isReadOnly ? .readOnly : [.discard, .writeZeroes])
        return features
    }

    /// The configuration space (virtio 5.2.4).
    package var configSpace: [UInt8] {
        var space = [UInt8](repeating: 0, count: ConfigOffset.end)
        space.setLittleEndian(capacity, at: ConfigOffset.capacity)
        space.setLittleEndian(UInt32(VhostLimits.segmentsMax), at: ConfigOffset.segmentsMax)
        space.setLittleEndian(blockBytes, at: ConfigOffset.blockSize)
        let exponent = (physicalBlockBytes / blockBytes).trailingZeroBitCount
        space[ConfigOffset.physicalBlockExponent] = UInt8(exponent)
        let minimum = UInt16(clamping: physicalBlockBytes / blockBytes)
        space.setLittleEndian(minimum, at: ConfigOffset.minimumIO)
        space.setLittleEndian(optimalBytes / blockBytes, at: ConfigOffset.optimalIO)
        space.setLittleEndian(UInt16(queueCount), at: ConfigOffset.queueCount)
        guard !isReadOnly else { return space }
        // One range per request keeps requests small; drivers send several requests instead.
        space.setLittleEndian(VhostLimits.rangeSectorsMax, at: ConfigOffset.discardSectorsMax)
        space.setLittleEndian(UInt32(1), at: ConfigOffset.discardRangesMax)
        space.setLittleEndian(
            physicalBlockBytes / UInt32(BlockShape.sectorBytes), at: ConfigOffset.discardAlignment)
        space.setLittleEndian(VhostLimits.rangeSectorsMax, at: ConfigOffset.writeZeroesSectorsMax)
        space.setLittleEndian(UInt32(1), at: ConfigOffset.writeZeroesRangesMax)
        space[ConfigOffset.writeZeroesMayUnmap] = 1
        return space
    }

    /// The identity, padded with zeros.
    var identityBytes: [UInt8] {
        var bytes = Array(identity.utf8.prefix(BlockShape.idBytes))
        while bytes.count < BlockShape.idBytes { bytes.append(0) }
        return bytes
    }
}
