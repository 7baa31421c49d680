package import IORing

/// The write-intent log's file: two slots that are written in turn.
package final class IntentLogFile: Sendable {
    /// log2 of a region: 128 MiB, so a 16 TiB disk has a log of 16 KiB and pays one sync for each
    /// region that it begins to write.
    package static let regionShift: UInt64 = 27
    private static let bytesMax =
        2 * IntentLogCodec.slotBytes(regionCount: IntentLogCodec.regionCountMax)

    package let shape: IntentLogShape
    /// Generation of the newest slot of a log that was just made.
    package static let firstGeneration: UInt64 = 1
    private let descriptor: OwnedDescriptor

    /// The descriptor's number, valid while this object lives.
    package var raw: Int32 { descriptor.raw }

    /// Replaces the log by one that marks nothing, or every region; durable when this returns.
    package init(
        creating path: String, diskBytes: UInt64, isAllMarked: Bool = false
    ) throws(SystemFault) {
        let regionBytes = UInt64(1) << Self.regionShift
        shape = IntentLogShape(
            regionCount: Int((diskBytes + regionBytes - 1) >> Self.regionShift),
            regionBytes: regionBytes)
        let bytes =
            isAllMarked
            ? IntentLogCodec.encodeFull(shape: shape) : IntentLogCodec.encodeEmpty(shape: shape)
        try StateFiles.replace(path, with: bytes)
        descriptor = try FileCalls.open(path, [.write])
    }

    /// The byte ranges that a log found on disk marks; nil when it cannot be read.
    package static func markedRanges(_ path: String) -> [Range<UInt64>]? {
        do {
            guard let bytes = try StateFiles.read(path, limit: bytesMax) else { return nil }
            let log = try IntentLogCodec.decode(bytes)
            var ranges: [Range<UInt64>] = []
            for (index, word) in log.words.enumerated() {
                var left = word
                while left != 0 {
                    let region = UInt64(index * 64 + left.trailingZeroBitCount)
                    left &= left - 1
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
    package static func regions(touching offset: UInt64, length: UInt64) -> Range<Int> {
        Int(offset >> regionShift)..<(Int((offset + length - 1) >> regionShift) + 1)
    }

    /// What is to be written for a generation, and where.
    package func encode(
        _ words: [UInt64], generation: UInt64
    ) -> (position: UInt64, bytes: [UInt8]) {
        (
            UInt64(
                IntentLogCodec.slotOffset(
                    generation: generation, regionCount: shape.regionCount)),
            IntentLogCodec.encodeSlot(words, shape: shape, generation: generation)
        )
    }

    /// Bytes of one slot.
    package var slotBytes: Int { IntentLogCodec.slotBytes(regionCount: shape.regionCount) }
}
