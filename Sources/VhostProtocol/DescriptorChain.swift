// Walks a descriptor chain once. Each descriptor is loaded, checked and kept; nothing is read
// twice.

/// A chain of buffers that the guest made available.
///
/// Its segments are in the caller's buffer, device-readable ones first.
@frozen
public struct DescriptorChain: Equatable, Sendable, BitwiseCopyable {
    /// Index of its first descriptor; identifies it in the used ring.
    public let head: UInt16
    /// Number of device-readable segments.
    @usableFromInline var readableSegments = 0
    /// Number of device-writable segments.
    @usableFromInline var writableSegments = 0
    /// Device-readable bytes of all descriptors, including those not stored.
    @usableFromInline var readableBytes: UInt64 = 0
    /// Device-writable bytes of all descriptors, including those not stored.
    @usableFromInline var writableBytes: UInt64 = 0
    /// The last device-writable byte, where the status goes; nil if it is not in memory.
    @usableFromInline var lastWritable: GuestPlace?
    /// Whether part of the data is outside memory, or the caller's buffer was too small for its
    /// segments.
    @usableFromInline var isRefused = false

    @inlinable init(head: UInt16) { self.head = head }

    /// Device-readable bytes, including those outside memory.
    package var readableTotal: UInt64 { readableBytes }
    /// Device-writable bytes, including those outside memory.
    package var writableTotal: UInt64 { writableBytes }
    /// Whether part of its data is outside memory or in too many segments.
    package var isWrong: Bool { isRefused }
}

/// Why a queue is broken.
///
/// It cannot be used any more.
public enum VirtqueueFault: Error, Equatable, Sendable, BitwiseCopyable {
    /// A ring is not inside one region.
    case ringOutsideMemory
    /// The available index moved by more than the queue size.
    case availableIndex(next: UInt16, found: UInt16)
    /// An available entry is out of range.
    case headOutOfRange(UInt16)
    /// An available entry names a chain that is still in flight.
    case headInFlight(UInt16)
    /// A `next` field is out of range.
    case nextOutOfRange(head: UInt16, next: UInt16)
    /// A chain is longer than its table, so it loops.
    case chainTooLong(head: UInt16)
    /// An indirect table without the feature.
    case indirectNotNegotiated(head: UInt16)
    /// A nested indirect table, or one with a `next` descriptor.
    case indirectMisplaced(head: UInt16)
    /// An indirect table of invalid length.
    case indirectLength(head: UInt16, UInt32)
    /// An indirect table that is not inside one region.
    case indirectOutsideMemory(head: UInt16)
    /// A device-readable buffer after a device-writable one.
    case readableAfterWritable(head: UInt16)
    /// No writable byte for the status.
    case noStatus(head: UInt16)
    /// The in-flight area is for another queue size or has an unknown version.
    case inflightShape(version: UInt16, descriptors: UInt16)
    /// The in-flight area's used index is too far from the used ring's.
    case inflightIndex(area: UInt16, used: UInt16)
    /// A head in the in-flight area is out of range.
    case inflightHead(UInt16)

    /// One line for a log: what was wrong, and with which value.
    public var text: String {
        switch self {
        case .ringOutsideMemory: "a ring is not in memory"
        case .availableIndex(let next, let found): "available index \(found) after \(next)"
        case .headOutOfRange(let head): "available descriptor \(head) is not there"
        case .headInFlight(let head): "available descriptor \(head) is in flight"
        case .nextOutOfRange(let head, let next):
            "chain \(head) goes on at descriptor \(next), which is not there"
        case .chainTooLong(let head): "chain \(head) has no end"
        case .indirectNotNegotiated(let head): "chain \(head) has a table, which was not agreed on"
        case .indirectMisplaced(let head): "chain \(head) has a table where none may be"
        case .indirectLength(let head, let count): "chain \(head) has a table of \(count) bytes"
        case .indirectOutsideMemory(let head): "chain \(head) has a table that is not in memory"
        case .readableAfterWritable(let head):
            "chain \(head) has a buffer to read behind one to write to"
        case .noStatus(let head): "chain \(head) has no byte for its status"
        case .inflightShape(let version, let descriptors):
            "an in-flight area of version \(version) for \(descriptors) descriptors"
        case .inflightIndex(let area, let used):
            "the in-flight area is at \(area), the used ring at \(used)"
        case .inflightHead(let head): "the in-flight area names descriptor \(head)"
        }
    }
}

/// A descriptor, loaded once (virtio 2.7.5).
@usableFromInline
struct Descriptor: BitwiseCopyable {
    @usableFromInline let address: UInt64
    @usableFromInline let byteCount: UInt32
    @usableFromInline let flags: UInt16
    @usableFromInline let next: UInt16

    @inlinable
    init<Memory: GuestMemory & ~Copyable>(_ memory: borrowing Memory, _ place: GuestPlace) {
        let words = memory.loadPair(place)
        address = words.first
        byteCount = UInt32(truncatingIfNeeded: words.second)
        flags = UInt16(truncatingIfNeeded: words.second >> 32)
        next = UInt16(truncatingIfNeeded: words.second >> 48)
    }

    @inlinable var isWritable: Bool { flags & SplitRing.writeFlag != 0 }
    @inlinable var isIndirect: Bool { flags & SplitRing.indirectFlag != 0 }
    @inlinable var hasNext: Bool { flags & SplitRing.nextFlag != 0 }
}

extension DescriptorChain {
    /// Follows the chain from its head through the `count` descriptors at `table`.
    ///
    /// Visits at most `count` descriptors, plus those of one indirect table, each once.
    @inlinable
    mutating func walk<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, table: GuestPlace, count: UInt16, hasIndirect: Bool,
        into segments: inout MutableSpan<GuestSegment>
    ) throws(VirtqueueFault) {
        var table = table
        var count = UInt64(count)
        var index = UInt64(head)
        var left = count
        var isInTable = false
        while true {
            guard left > 0 else { throw .chainTooLong(head: head) }
            left -= 1
            let found = Descriptor(
                memory, table.advanced(by: index &* SplitRing.descriptorBytes))
            if found.isIndirect {
                guard hasIndirect else { throw .indirectNotNegotiated(head: head) }
                guard !isInTable, !found.hasNext else { throw .indirectMisplaced(head: head) }
                table = try indirectTable(memory, found)
                count = UInt64(found.byteCount) / SplitRing.descriptorBytes
                left = count
                index = 0
                isInTable = true
                continue
            }
            try append(found, memory, into: &segments)
            guard found.hasNext else { return }
            guard UInt64(found.next) < count else {
                throw .nextOutOfRange(head: head, next: found.next)
            }
            index = UInt64(found.next)
        }
    }

    /// The indirect table that a descriptor refers to.
    @inlinable
    func indirectTable<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ found: Descriptor
    ) throws(VirtqueueFault) -> GuestPlace {
        let byteCount = UInt64(found.byteCount)
        guard byteCount > 0, byteCount.isMultiple(of: SplitRing.descriptorBytes),
            byteCount / SplitRing.descriptorBytes <= VhostLimits.chainDescriptorsMax
        else { throw .indirectLength(head: head, found.byteCount) }
        guard let segment = memory.segment(at: found.address, byteCount: byteCount),
            segment.byteCount == byteCount
        else { throw .indirectOutsideMemory(head: head) }
        return segment.place
    }

    /// Adds one descriptor's buffer.
    @inlinable
    mutating func append<Memory: GuestMemory & ~Copyable>(
        _ found: Descriptor, _ memory: borrowing Memory,
        into segments: inout MutableSpan<GuestSegment>
    ) throws(VirtqueueFault) {
        var left = UInt64(found.byteCount)
        // Ignore empty buffers, wherever they point.
        guard left > 0 else { return }
        if found.isWritable {
            writableBytes += left
        } else {
            guard writableBytes == 0 else { throw .readableAfterWritable(head: head) }
            readableBytes += left
        }
        var address = found.address
        while left > 0 {
            if isRefused {
                // Nothing is kept any more: only the place of the status byte still counts.
                guard found.isWritable else { return }
                lastWritable = memory.segment(at: address &+ (left - 1), byteCount: 1)?.place
                return
            }
            guard let segment = memory.segment(at: address, byteCount: left) else {
                isRefused = true
                if found.isWritable { lastWritable = nil }
                return
            }
            keep(segment, isWritable: found.isWritable, into: &segments)
            left -= segment.byteCount
            // Wraps only if the last region ends at the last address.
            address &+= segment.byteCount
        }
    }

    @inlinable
    mutating func keep(
        _ segment: GuestSegment, isWritable: Bool, into segments: inout MutableSpan<GuestSegment>
    ) {
        if isWritable { lastWritable = segment.place.advanced(by: segment.byteCount - 1) }
        let count = readableSegments + writableSegments
        guard !isRefused, count < segments.count else {
            isRefused = true
            return
        }
        segments[count] = segment
        if isWritable { writableSegments += 1 } else { readableSegments += 1 }
    }
}
