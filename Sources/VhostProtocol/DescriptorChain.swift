// One chain of descriptors, walked once: what the guest says is read, checked and kept here, and
// nothing of it is read again.

/// A chain of buffers that the guest has made available.
///
/// Its segments stand in the caller's buffer: what the guest wrote for us first, then what we may
/// write.
@frozen
public struct DescriptorChain: Equatable, Sendable, BitwiseCopyable {
    /// The descriptor it begins with, by which it is given back.
    public let head: UInt16
    /// Segments to read.
    @usableFromInline var readableSegments = 0
    /// Segments to write to.
    @usableFromInline var writableSegments = 0
    /// Bytes to read, of all descriptors, kept or not.
    @usableFromInline var readableBytes: UInt64 = 0
    /// Bytes to write to, likewise.
    @usableFromInline var writableBytes: UInt64 = 0
    /// The last byte that may be written to; nil when there is none in memory.
    @usableFromInline var lastWritable: GuestPlace?
    /// Whether the data is wrong, though the last byte is there to say so: it is not all in memory,
    /// or in more segments than the caller has room for.
    @usableFromInline var isRefused = false

    @inlinable init(head: UInt16) { self.head = head }

    /// Bytes to read, wherever they are.
    package var readableTotal: UInt64 { readableBytes }
    /// Bytes to write to, wherever they are.
    package var writableTotal: UInt64 { writableBytes }
    /// Whether its data is not all in memory, or in too many segments.
    package var isWrong: Bool { isRefused }
}

/// Why a queue is broken: nothing in it is believed any more, and the guest has lost it.
public enum VirtqueueFault: Error, Equatable, Sendable, BitwiseCopyable {
    /// A ring is not in memory, or not in one piece.
    case ringOutsideMemory
    /// The available index has moved by more than there are entries.
    case availableIndex(next: UInt16, found: UInt16)
    /// An available entry names a descriptor that there is not.
    case headOutOfRange(UInt16)
    /// An available entry names a chain that has not been given back.
    case headInFlight(UInt16)
    /// A descriptor's successor is out of its table.
    case nextOutOfRange(head: UInt16, next: UInt16)
    /// A chain has more descriptors than its table: it is a loop.
    case chainTooLong(head: UInt16)
    /// An indirect table, which was not agreed on.
    case indirectNotNegotiated(head: UInt16)
    /// An indirect table in an indirect table, or one that has a successor.
    case indirectMisplaced(head: UInt16)
    /// An indirect table of no, too many, or a broken number of descriptors.
    case indirectLength(head: UInt16, UInt32)
    /// An indirect table that is not in memory, or not in one piece.
    case indirectOutsideMemory(head: UInt16)
    /// A buffer to read behind one to write to.
    case readableAfterWritable(head: UInt16)
    /// No byte to say how a request went.
    case noStatus(head: UInt16)
    /// The in-flight area does not fit the queue, or is of another version.
    case inflightShape(version: UInt16, descriptors: UInt16)
    /// The in-flight area and the used ring are further apart than a batch can be.
    case inflightIndex(area: UInt16, used: UInt16)
    /// The in-flight area names a descriptor that there is not.
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

/// A descriptor, read once (virtio 2.7.5).
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
    /// Follows the chain from its head through a table of `count` descriptors at `table`.
    ///
    /// Ends after `count` descriptors, or those of one indirect table; each is loaded once.
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

    /// Where the table is that a descriptor names.
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
        // A buffer of no bytes says nothing, wherever it is.
        guard left > 0 else { return }
        if found.isWritable {
            writableBytes += left
        } else {
            guard writableBytes == 0 else { throw .readableAfterWritable(head: head) }
            readableBytes += left
        }
        var address = found.address
        while left > 0 {
            guard let segment = memory.segment(at: address, byteCount: left) else {
                isRefused = true
                if found.isWritable { lastWritable = nil }
                return
            }
            keep(segment, isWritable: found.isWritable, into: &segments)
            left -= segment.byteCount
            // The last region may end with the last address.
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
