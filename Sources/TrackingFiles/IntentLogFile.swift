package import SystemLayer
package import Tracking

/// The write-intent log's file: two slots that are written in turn.
package final class IntentLogFile: Sendable {
    /// log2 of the smallest region: 128 MiB, so a 16 TiB disk has a log of 16 KiB and pays one sync
    /// for each region that it begins to write.
    package static let regionShiftMin: UInt64 = 27
    /// Regions that a log has at most: 128 KiB a slot.
    ///
    /// Larger disks have larger regions.
    package static let regionCountMax = 1 << 20
    private static let bytesMax =
        2 * IntentLogCodec.slotBytes(regionCount: IntentLogCodec.regionCountMax)

    package let shape: IntentLogShape
    /// Generation of the newest slot of a log that was just made.
    package static let firstGeneration: UInt64 = 1
    /// log2 of the bytes of a region.
    package let regionShift: UInt64
    /// Whether it was made with every region marked, which is what its ring begins with.
    package let isAllMarked: Bool
    private let file: any TrackedFile

    /// log2 of a region's bytes on a disk of this size: a power of two, so that the count is
    /// bounded.
    package static func regionShift(diskBytes: UInt64) -> UInt64 {
        var shift = regionShiftMin
        while shift < 62, (diskBytes - 1) >> shift >= UInt64(regionCountMax) { shift += 1 }
        return shift
    }

    /// Replaces the log by one that marks nothing, or every region; durable when this returns.
    ///
    /// `diskBytes` is from 1 to 2^62. Without `isNameDurable` it is the one that a loss of power
    /// leaves once the directory is synced.
    package init(
        in files: any TrackedDirectory, diskBytes: UInt64, isAllMarked: Bool = false,
        isNameDurable: Bool = true
    ) throws(SystemFault) {
        let shift = Self.regionShift(diskBytes: diskBytes)
        regionShift = shift
        self.isAllMarked = isAllMarked
        shape = IntentLogShape(
            regionCount: Int((diskBytes - 1) >> shift) + 1, regionBytes: 1 << shift)
        let name = TrackingPlaces.intentName
        let bytes =
            isAllMarked
            ? IntentLogCodec.encodeFull(shape: shape) : IntentLogCodec.encodeEmpty(shape: shape)
        try files.replace(name, with: bytes, isNameDurable: isNameDurable)
        file = try files.open(name, writable: true)
    }

    /// The byte ranges that a log found on disk marks; nil when it cannot be read.
    package static func markedRanges(in files: any TrackedDirectory) -> [Range<UInt64>]? {
        do {
            guard let bytes = try files.read(TrackingPlaces.intentName, limit: bytesMax) else {
                return nil
            }
            let log = try IntentLogCodec.decode(bytes)
            var ranges: [Range<UInt64>] = []
            for (index, word) in log.words.enumerated() {
                var left = word
                while left != 0 {
                    let region = UInt64(index * 64 + left.trailingZeroBitCount)
                    left &= left - 1
                    // No overflow: a log is only read when its regions fit into 62 bits.
                    guard region < UInt64(log.shape.regionCount) else { return nil }
                    let start = region * log.shape.regionBytes
                    ranges.append(start..<(start + log.shape.regionBytes))
                }
            }
            return ranges
        } catch {
            return nil
        }
    }

    /// The regions that a byte range touches; the range is not empty.
    package func regions(touching offset: UInt64, length: UInt64) -> Range<Int> {
        WriteIntent.regions(touching: offset, length: length, shift: regionShift)
    }

    /// Writes one slot durably; may wait as long as the storage does.
    ///
    /// The whole slot is written each time, so a success counts whatever failed before it.
    package func write(_ words: [UInt64], generation: UInt64) throws(SystemFault) {
        let position = IntentLogCodec.slotOffset(
            generation: generation, regionCount: shape.regionCount)
        try file.write(
            IntentLogCodec.encodeSlot(words, shape: shape, generation: generation),
            at: UInt64(position))
        try file.sync()
    }
}
