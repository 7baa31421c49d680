// Validates requests: a chain becomes a request that is bounded by construction, or an answer.

/// The rules for one guest's requests, fixed by its disk and the negotiated features.
///
/// Every chain gets a verdict, unless it has no status byte, which breaks the queue. Header and
/// ranges are loaded once.
@frozen
public struct BlockRules: Sendable {
    @usableFromInline let capacity: UInt64
    @usableFromInline let isReadOnly: Bool
    @usableFromInline let takesDiscard: Bool
    @usableFromInline let takesWriteZeroes: Bool
    @usableFromInline let isWriteThrough: Bool
    @usableFromInline let identity: [UInt8]

    /// The rules for `device` under the negotiated `features`.
    package init(_ device: BlockDescription, _ features: DeviceFeatures) {
        capacity = device.capacity
        isReadOnly = device.isReadOnly
        takesDiscard = features.contains(.discard)
        takesWriteZeroes = features.contains(.writeZeroes)
        isWriteThrough = !features.contains(.flush)
        identity = device.identityBytes
    }

    /// Decides what to do with a chain whose segments are in `segments`.
    ///
    /// Trims header and status off, so that a request's segments are only its data.
    @inlinable
    public func check<Memory: GuestMemory & ~Copyable>(
        _ chain: DescriptorChain, _ memory: borrowing Memory,
        _ segments: inout MutableSpan<GuestSegment>
    ) throws(VirtqueueFault) -> BlockVerdict {
        guard let status = chain.lastWritable else { throw .noStatus(head: chain.head) }
        guard !chain.isRefused, chain.readableBytes >= BlockShape.headerBytes else {
            return refuse(chain, status, .ioError)
        }
        var data = DataSegments(chain)
        let header = data.takeRecord(memory, &segments)
        data.dropStatus(&segments)
        let type = UInt32(truncatingIfNeeded: header.first)
        let sector = header.second
        switch type {
        case BlockType.read:
            guard data.readableBytes == 0, endsAtSectors(data.writable, segments) else {
                return refuse(chain, status, .ioError)
            }
            return transfer(
                .read, chain, status, sector, byteCount: data.writableBytes,
                segments: data.writable)
        case BlockType.write:
            guard !isReadOnly, data.writableBytes == 0, endsAtSectors(data.readable, segments)
            else {
                return refuse(chain, status, .ioError)
            }
            return transfer(
                .write, chain, status, sector, byteCount: data.readableBytes,
                segments: data.readable)
        case BlockType.flush:
            return .carryOut(BlockRequest(.flush, chain, status: status))
        case BlockType.discard where takesDiscard:
            return range(isDiscard: true, chain, status, data, memory, &segments)
        case BlockType.writeZeroes where takesWriteZeroes:
            return range(isDiscard: false, chain, status, data, memory, &segments)
        case BlockType.getID:
            return identify(chain, status, data, memory, &segments)
        default:
            return refuse(chain, status, .unsupported)
        }
    }

    // MARK: Commands

    @inlinable
    func transfer(
        _ command: BlockCommand, _ chain: DescriptorChain, _ status: GuestPlace,
        _ sector: UInt64, byteCount: UInt64, segments: Range<Int>
    ) -> BlockVerdict {
        guard byteCount <= VhostLimits.requestBytesMax,
            byteCount.isMultiple(of: BlockShape.sectorBytes),
            isOnDisk(sector, byteCount / BlockShape.sectorBytes)
        else { return refuse(chain, status, .ioError) }
        let request = BlockRequest(
            command, chain, status: status, segments: segments,
            offset: sector * BlockShape.sectorBytes, byteCount: byteCount,
            isDurable: isWriteThrough && command == .write)
        return byteCount == 0 ? .answer(request.answer(.ok)) : .carryOut(request)
    }

    @inlinable
    func range<Memory: GuestMemory & ~Copyable>(
        isDiscard: Bool, _ chain: DescriptorChain, _ status: GuestPlace, _ data: DataSegments,
        _ memory: borrowing Memory, _ segments: inout MutableSpan<GuestSegment>
    ) -> BlockVerdict {
        guard !isReadOnly, data.readableBytes == BlockShape.rangeBytes, data.writableBytes == 0
        else { return refuse(chain, status, .ioError) }
        var data = data
        let words = data.takeRecord(memory, &segments)
        let count = UInt32(truncatingIfNeeded: words.second)
        let flags = UInt32(truncatingIfNeeded: words.second >> 32)
        // The unmap flag is for write zeroes only (virtio 5.2.6.2).
        guard flags & ~(isDiscard ? 0 : BlockShape.unmapFlag) == 0 else {
            return refuse(chain, status, .unsupported)
        }
        guard count <= VhostLimits.rangeSectorsMax, isOnDisk(words.first, UInt64(count)) else {
            return refuse(chain, status, .ioError)
        }
        let mayUnmap = flags & BlockShape.unmapFlag != 0
        let request = BlockRequest(
            isDiscard ? .discard : .writeZeroes(mayUnmap: mayUnmap), chain, status: status,
            offset: words.first * BlockShape.sectorBytes,
            byteCount: UInt64(count) * BlockShape.sectorBytes, isDurable: isWriteThrough)
        return count == 0 ? .answer(request.answer(.ok)) : .carryOut(request)
    }

    @inlinable
    func identify<Memory: GuestMemory & ~Copyable>(
        _ chain: DescriptorChain, _ status: GuestPlace, _ data: DataSegments,
        _ memory: borrowing Memory, _ segments: inout MutableSpan<GuestSegment>
    ) -> BlockVerdict {
        guard data.readableBytes == 0 else { return refuse(chain, status, .ioError) }
        var written = 0
        for index in data.writable {
            let segment = segments[index]
            var offset: UInt64 = 0
            while offset < segment.byteCount, written < identity.count {
                memory.store8(identity[written], segment.place.advanced(by: offset))
                offset += 1
                written += 1
            }
        }
        // The status byte counts only if the bytes before it are contiguous.
        let isFilled = UInt64(written) == data.writableBytes
        return .answer(
            BlockAnswer(
                head: chain.head, status: status, result: .ok,
                written: UInt32(written) + (isFilled ? 1 : 0)))
    }

    /// Whether a request can be cut between sectors, however it is cut: of one with few segments
    /// any number of bytes is one operation.
    @inlinable
    func endsAtSectors(_ range: Range<Int>, _ segments: borrowing MutableSpan<GuestSegment>) -> Bool
    {
        guard range.count > VhostLimits.oddSegmentsMax else { return true }
        for index in range where !segments[index].byteCount.isMultiple(of: BlockShape.sectorBytes) {
            return false
        }
        return true
    }

    /// Whether the range ends at or before the disk's end; written so that no sum can overflow.
    @inlinable
    func isOnDisk(_ sector: UInt64, _ count: UInt64) -> Bool {
        sector <= capacity && count <= capacity - sector
    }

    @inlinable
    func refuse(
        _ chain: DescriptorChain, _ status: GuestPlace, _ result: BlockStatus
    ) -> BlockVerdict {
        // If data precedes the status, nothing contiguous has been written.
        let written: UInt32 = chain.writableBytes == 1 ? 1 : 0
        return .answer(
            BlockAnswer(head: chain.head, status: status, result: result, written: written))
    }
}

/// Trims header and status off a chain's segments: drivers may split a request into buffers as they
/// like (virtio 2.7.4).
@usableFromInline
struct DataSegments {
    /// Segments left to read.
    @usableFromInline var readable: Range<Int>
    /// Segments left to write to.
    @usableFromInline var writable: Range<Int>
    @usableFromInline var readableBytes: UInt64
    @usableFromInline var writableBytes: UInt64

    /// All segments of a chain that was stored completely.
    @inlinable
    init(_ chain: DescriptorChain) {
        readable = 0..<chain.readableSegments
        writable = chain.readableSegments..<chain.readableSegments + chain.writableSegments
        readableBytes = chain.readableBytes
        writableBytes = chain.writableBytes
    }

    /// Loads and removes the next 16 readable bytes, which must be there.
    @inlinable
    mutating func takeRecord<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ segments: inout MutableSpan<GuestSegment>
    ) -> GuestWords {
        let first = readable.lowerBound
        readableBytes -= BlockShape.headerBytes
        let front = segments[first]
        guard front.byteCount < BlockShape.headerBytes else {
            advance(&segments, by: BlockShape.headerBytes)
            return memory.loadPair(front.place)
        }
        var words: (UInt64, UInt64) = (0, 0)
        for index in 0..<BlockShape.headerBytes {
            let byte = UInt64(memory.load8(segments[readable.lowerBound].place))
            if index < 8 {
                words.0 |= byte << (8 * index)
            } else {
                words.1 |= byte << (8 * (index - 8))
            }
            advance(&segments, by: 1)
        }
        return GuestWords(first: words.0, second: words.1)
    }

    /// Removes bytes from the first readable segment, which must have them.
    @inlinable
    mutating func advance(_ segments: inout MutableSpan<GuestSegment>, by byteCount: UInt64) {
        let first = readable.lowerBound
        let front = segments[first]
        if front.byteCount == byteCount {
            readable = first + 1..<readable.upperBound
        } else {
            segments[first] = GuestSegment(
                place: front.place.advanced(by: byteCount),
                byteCount: front.byteCount - byteCount)
        }
    }

    /// Removes the last writable byte.
    @inlinable
    mutating func dropStatus(_ segments: inout MutableSpan<GuestSegment>) {
        writableBytes -= 1
        let last = writable.upperBound - 1
        if segments[last].byteCount == 1 {
            writable = writable.lowerBound..<last
        } else {
            segments[last].byteCount -= 1
        }
    }
}
