// Requests that have been checked, and their answers.

/// What a request does.
@frozen
public enum BlockCommand: Equatable, Sendable, BitwiseCopyable {
    /// Reads into the segments.
    case read
    /// Writes what is in the segments.
    case write
    /// Makes all completed writes durable.
    case flush
    /// Says that the range's content no longer matters.
    case discard
    /// Makes the range read as zeros; with `mayUnmap` its blocks may be deallocated.
    case writeZeroes(mayUnmap: Bool)
}

/// A request that was checked against the disk it is for.
///
/// Only `BlockRules` makes one. Its range is inside the disk, in whole sectors, and not empty
/// unless the command is a flush. Reads and writes are at most `VhostLimits.requestBytesMax` long,
/// and their segments have exactly that many bytes, all in shared memory.
@frozen
public struct BlockRequest: Equatable, Sendable, BitwiseCopyable {
    /// What to do.
    public let command: BlockCommand
    /// The chain to complete.
    public let head: UInt16
    /// The first of its segments in the caller's buffer.
    public let firstSegment: Int
    /// How many there are; none unless it reads or writes.
    public let segmentCount: Int
    /// First byte concerned.
    public let offset: UInt64
    /// Bytes concerned.
    public let byteCount: UInt64
    /// Whether it must be durable before it is answered, because the guest sends no flushes.
    public let isDurable: Bool
    /// Where the status byte goes.
    public let status: GuestPlace

    @inlinable
    init(
        _ command: BlockCommand, _ chain: DescriptorChain, status: GuestPlace,
        segments: Range<Int> = 0..<0, offset: UInt64 = 0, byteCount: UInt64 = 0,
        isDurable: Bool = false
    ) {
        self.command = command
        head = chain.head
        firstSegment = segments.lowerBound
        segmentCount = segments.count
        self.offset = offset
        self.byteCount = byteCount
        self.isDurable = isDurable
        self.status = status
    }

    /// The answer for this result.
    @inlinable
    public func answer(_ result: BlockStatus) -> BlockAnswer {
        let data = command == .read ? UInt32(truncatingIfNeeded: byteCount) : 0
        // The count is of contiguous bytes from the start; after a failed read there may be none.
        let written = result == .ok || data == 0 ? data + 1 : 0
        return BlockAnswer(head: head, status: status, result: result, written: written)
    }
}

/// How a request is answered.
@frozen
public struct BlockAnswer: Equatable, Sendable, BitwiseCopyable {
    /// The chain to complete.
    public let head: UInt16
    /// Where the status byte goes.
    public let status: GuestPlace
    /// How it went.
    public let result: BlockStatus
    /// Bytes written, from the first writable one on.
    public let written: UInt32

    @inlinable
    init(head: UInt16, status: GuestPlace, result: BlockStatus, written: UInt32) {
        self.head = head
        self.status = status
        self.result = result
        self.written = written
    }
}

/// What becomes of a request.
@frozen
public enum BlockVerdict: Equatable, Sendable, BitwiseCopyable {
    /// Carry it out, then answer.
    case carryOut(BlockRequest)
    /// Answer at once.
    case answer(BlockAnswer)
}

extension Virtqueue {
    /// Stores a request's status and completes its chain, effective with the next `publish`.
    @inlinable
    public mutating func answer<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ answer: BlockAnswer
    ) {
        memory.store8(answer.result.rawValue, answer.status)
        complete(memory, head: answer.head, written: answer.written)
    }
}
