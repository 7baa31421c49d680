/// How a disk divides into the regions of its write-intent log.
package struct IntentLogShape: Sendable, Hashable {
    /// Regions of the disk.
    package let regionCount: Int
    /// Bytes of a region.
    package let regionBytes: UInt64

    package init(regionCount: Int, regionBytes: UInt64) {
        precondition(regionCount > 0 && regionCount <= IntentLogCodec.regionCountMax)
        precondition(regionBytes > 0)
        self.regionCount = regionCount
        self.regionBytes = regionBytes
    }
}

/// What a write-intent log says.
package struct IntentLog: Sendable, Hashable {
    package var shape: IntentLogShape
    /// Of the newest whole slot.
    package var generation: UInt64
    /// Regions that may hold changes whose fine bits were not durable: every one that a whole slot
    /// marks; one bit a region, lowest region first.
    package var words: [UInt64]
    /// Slots that were whole: 1 after a torn write, else 2.
    package var wholeSlots: Int
}

/// Why bytes are no write-intent log: then every block of the disk counts as dirty.
package enum IntentLogFault: Error, Sendable, Hashable {
    /// The length is not that of two slots.
    case length(bytes: Int)
    /// Neither slot is whole.
    case noWholeSlot
    /// Both slots are whole, and of different disks.
    case slotsDisagree(IntentLogShape, IntentLogShape)
}

extension IntentLogFault: CustomStringConvertible {
    package var description: String {
        switch self {
        case .length(let bytes):
            "the write-intent log has \(bytes) bytes, which is not two slots"
        case .noWholeSlot:
            "neither slot of the write-intent log matches its checksum"
        case .slotsDisagree(let first, let second):
            """
            the slots of the write-intent log are of different disks: \
            \(first.regionCount) regions of \(first.regionBytes) bytes and \
            \(second.regionCount) of \(second.regionBytes)
            """
        }
    }
}

/// The write-intent log as bytes: two slots of equal size, written in turn.
///
/// A write that is torn by a power cut spoils one slot; the other holds the log before it, which
/// marks all that any completed write marked. A slot that was damaged later looks like a torn one.
/// All integers are little-endian. Offsets in a slot: 0 magic, 8 version, 12 CRC-32 of the whole
/// slot with this field zero, 16 generation, 24 regions, 32 bytes of a region, 40 words, then
/// zeros.
package enum IntentLogCodec {
    /// Slots begin and end on multiples of this: no sector or page holds parts of both.
    package static let slotAlignmentBytes = 4096
    /// Most regions that are read: 512 TiB at 128 MiB; 512 KiB of words.
    ///
    /// Logs are made with fewer, see `IntentLogFile.regionCountMax`.
    package static let regionCountMax = 1 << 22
    /// Bytes that all regions together have at most: what a disk can have, and no number overflows.
    private static let bytesMax: UInt64 = 1 << 62

    private static let magic: [UInt8] = Array("nbdwilog".utf8)
    private static let version: UInt32 = 1
    private static let checksumOffset = 12
    private static let wordsOffset = 40

    /// Bytes of one slot.
    package static func slotBytes(regionCount: Int) -> Int {
        let bytes = wordsOffset + wordCount(regionCount) * MemoryLayout<UInt64>.size
        return (bytes + slotAlignmentBytes - 1) & ~(slotAlignmentBytes - 1)
    }

    /// Where in the log the slot of a generation lies, in bytes.
    package static func slotOffset(generation: UInt64, regionCount: Int) -> Int {
        Int(generation & 1) * slotBytes(regionCount: regionCount)
    }

    /// The bytes of one slot; there is one word for every 64 regions begun.
    package static func encodeSlot(
        _ words: [UInt64], shape: IntentLogShape, generation: UInt64
    ) -> [UInt8] {
        precondition(words.count == wordCount(shape.regionCount))
        let size = slotBytes(regionCount: shape.regionCount)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(size)
        bytes.append(contentsOf: magic)
        bytes.append(littleEndian: version)
        bytes.append(littleEndian: UInt32(0))
        bytes.append(littleEndian: generation)
        bytes.append(littleEndian: UInt64(shape.regionCount))
        bytes.append(littleEndian: shape.regionBytes)
        for word in words { bytes.append(littleEndian: word) }
        bytes.append(contentsOf: repeatElement(0, count: size - bytes.count))
        setChecksum(Zlib.crc32(bytes.span), in: &bytes)
        return bytes
    }

    /// A log that marks nothing, both slots whole: its newest generation is `generation + 1`.
    package static func encodeEmpty(shape: IntentLogShape, generation: UInt64 = 0) -> [UInt8] {
        let words = [UInt64](repeating: 0, count: wordCount(shape.regionCount))
        let slots = [generation, generation + 1].sorted { $0 & 1 < $1 & 1 }
        return slots.flatMap { encodeSlot(words, shape: shape, generation: $0) }
    }

    /// A log whose both slots mark every region: its newest generation is 1.
    package static func encodeFull(shape: IntentLogShape) -> [UInt8] {
        let words = WriteIntent.allMarked(shape.regionCount)
        return [UInt64(0), 1].flatMap { encodeSlot(words, shape: shape, generation: $0) }
    }

    /// What a log of two slots says: the union of the whole ones.
    package static func decode(_ bytes: [UInt8]) throws(IntentLogFault) -> IntentLog {
        let size = bytes.count / 2
        guard size > 0, bytes.count == size * 2, size % slotAlignmentBytes == 0,
            size <= slotBytes(regionCount: regionCountMax)
        else { throw .length(bytes: bytes.count) }
        let first = slot(Array(bytes[..<size]), parity: 0)
        let second = slot(Array(bytes[size...]), parity: 1)
        guard let first, let second else {
            guard let only = first ?? second else { throw .noWholeSlot }
            return only
        }
        guard first.shape == second.shape else {
            throw .slotsDisagree(first.shape, second.shape)
        }
        return IntentLog(
            shape: first.shape, generation: max(first.generation, second.generation),
            words: zip(first.words, second.words).map { $0 | $1 }, wholeSlots: 2)
    }

    /// What one slot says, or nil when it is not exactly what `encodeSlot` makes for its place.
    private static func slot(_ bytes: [UInt8], parity: UInt64) -> IntentLog? {
        var unsummed = bytes
        setChecksum(0, in: &unsummed)
        let span = bytes.span
        guard bytes.starts(with: magic), span.littleEndian(UInt32.self, at: 8) == version,
            span.littleEndian(UInt32.self, at: checksumOffset) == Zlib.crc32(unsummed.span)
        else { return nil }
        let generation = span.littleEndian(UInt64.self, at: 16)
        let regions = span.littleEndian(UInt64.self, at: 24)
        let regionBytes = span.littleEndian(UInt64.self, at: 32)
        guard generation & 1 == parity, regionBytes > 0,
            regions > 0, regions <= UInt64(regionCountMax), regionBytes <= bytesMax,
            (regions - 1).multipliedReportingOverflow(by: regionBytes).overflow == false,
            (regions - 1) * regionBytes <= bytesMax,
            slotBytes(regionCount: Int(regions)) == bytes.count
        else { return nil }
        let words = (0..<wordCount(Int(regions))).map {
            span.littleEndian(UInt64.self, at: wordsOffset + $0 * MemoryLayout<UInt64>.size)
        }
        return IntentLog(
            shape: IntentLogShape(regionCount: Int(regions), regionBytes: regionBytes),
            generation: generation, words: words, wholeSlots: 1)
    }

    private static func setChecksum(_ checksum: UInt32, in bytes: inout [UInt8]) {
        for index in 0..<4 {
            bytes[checksumOffset + index] = UInt8(
                truncatingIfNeeded: checksum >> UInt32(8 * index))
        }
    }

    private static func wordCount(_ regionCount: Int) -> Int { (regionCount + 63) / 64 }
}
