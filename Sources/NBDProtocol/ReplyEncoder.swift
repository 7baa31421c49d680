// Replies of the transmission phase, written into memory the caller owns. Bulk data is not copied
// here: the caller sends it right after the header.

/// Writes reply headers and small replies in the form that a connection agreed on.
///
/// Each function writes at `offset` of the memory and returns how many bytes it wrote. It traps
/// when they do not fit; the sizes below say what is needed. Nothing allocates.
package struct ReplyEncoder: Sendable, Equatable, BitwiseCopyable {
    /// The form of every reply.
    package let mode: ReplyMode

    /// Size of the longest header in front of data or extents, in bytes.
    package static let headerBytesMax = 40
    /// Size of the longest reply without data, with or without an error and its place, in bytes.
    package static let errorBytesMax = 32 + 4 + 2 + ProtocolLimits.errorTextBytesMax + 8

    /// Marks the last chunk of a reply.
    private static let doneFlag: UInt16 = 1

    /// An encoder of replies in `mode`.
    package init(_ mode: ReplyMode) { self.mode = mode }

    /// Size of a reply or chunk that says nothing further, in bytes.
    package var headerBytes: Int {
        switch mode {
        case .simple: 16
        case .structured: 20
        case .extended: 32
        }
    }
    /// Size of what precedes a READ's data, in bytes.
    package var dataHeaderBytes: Int { headerBytes + (mode == .simple ? 0 : 8) }
    /// Size of what precedes a BLOCK_STATUS chunk's extents, in bytes.
    package var statusHeaderBytes: Int { headerBytes + (mode == .extended ? 8 : 4) }
    /// Size of one extent, in bytes.
    package var extentBytes: Int { mode == .extended ? 16 : 8 }
    /// Whether an extent's length may need more than 32 bits.
    package var hasLongExtents: Bool { mode == .extended }

    // MARK: Whole replies

    /// Writes the whole reply to a request that succeeded and has no data to send.
    ///
    /// A READ of no bytes is one, but has a form of its own: `isRead`.
    package func success(
        _ echo: RequestEcho, isRead: Bool = false, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        // With structured replies, only READ must be answered by a chunk; this is shorter.
        if mode == .simple || (mode == .structured && !isRead) {
            return simple(.none, echo, into: &memory, at: offset)
        }
        return none(echo, into: &memory, at: offset)
    }

    /// Writes an error, which ends the reply unless `done` says otherwise.
    ///
    /// Chunks carry the text, cut between characters to `ProtocolLimits.errorTextBytesMax`, and the
    /// place in the export where it happened, if one is known. `error` is not `.none`, and a simple
    /// reply is always done.
    package func error(
        _ error: WireError, _ echo: RequestEcho, text: String, place: UInt64? = nil,
        done: Bool = true, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        self.error(
            error, echo, text: text.utf8.span, place: place, done: done, into: &memory, at: offset)
    }

    /// Writes an error whose text is given as UTF-8.
    package func error(
        _ error: WireError, _ echo: RequestEcho, text: Span<UInt8>, place: UInt64? = nil,
        done: Bool = true, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        precondition(error != .none, "an error reply needs an error")
        if mode == .simple {
            precondition(done, "a simple reply has no parts")
            return simple(error, echo, into: &memory, at: offset)
        }
        let textBytes = text.utf8PrefixCount(limit: ProtocolLimits.errorTextBytesMax)
        let bodyBytes = 4 + 2 + textBytes + (place == nil ? 0 : 8)
        chunk(
            place == nil ? .error : .errorAtOffset, echo, byteCount: UInt64(bodyBytes), done: done,
            into: &memory, at: offset)
        let body = offset + headerBytes
        store(error.rawValue, into: &memory, at: body)
        store(UInt16(textBytes), into: &memory, at: body + 4)
        for index in 0..<textBytes {
            memory.storeBytes(of: text[index], toByteOffset: body + 6 + index, as: UInt8.self)
        }
        if let place { store(place, into: &memory, at: body + 6 + textBytes) }
        return headerBytes + bodyBytes
    }

    // MARK: Reads

    /// Writes what precedes a READ's data; `dataBytes` bytes of data follow it.
    ///
    /// In chunks `place` is where the data lies in the export, `dataBytes` is at least one and at
    /// most 2^32 - 9, and with `done` no error may be found after this. A simple reply has this
    /// once, and all the data behind it.
    package func data(
        _ echo: RequestEcho, place: UInt64, dataBytes: UInt32, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        if mode == .simple { return simple(.none, echo, into: &memory, at: offset) }
        chunk(
            .offsetData, echo, byteCount: 8 + UInt64(dataBytes), done: done, into: &memory,
            at: offset)
        store(place, into: &memory, at: offset + headerBytes)
        return dataHeaderBytes
    }

    /// Writes a chunk that says `length` bytes at `place` of the export are zeros.
    ///
    /// Not for simple replies.
    package func hole(
        _ echo: RequestEcho, place: UInt64, length: UInt32, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        chunk(.offsetHole, echo, byteCount: 12, done: done, into: &memory, at: offset)
        store(place, into: &memory, at: offset + headerBytes)
        store(length, into: &memory, at: offset + headerBytes + 8)
        return headerBytes + 12
    }

    /// Writes the empty chunk that ends a reply.
    ///
    /// Not for simple replies.
    package func none(
        _ echo: RequestEcho, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        chunk(.none, echo, byteCount: 0, done: true, into: &memory, at: offset)
        return headerBytes
    }

    // MARK: Block status

    /// Writes the header of a BLOCK_STATUS chunk; `extentCount` extents follow it.
    ///
    /// `extentCount` is at least one and at most 2^20, the specification's bound. Not for simple
    /// replies.
    package func status(
        _ echo: RequestEcho, contextID: UInt32, extentCount: Int, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        precondition(extentCount >= 1, "a status chunk needs an extent")
        precondition(extentCount <= 1 << 20, "a status chunk holds at most 2^20 extents")
        let isExtended = mode == .extended
        chunk(
            isExtended ? .blockStatusExtended : .blockStatus, echo,
            byteCount: UInt64(statusHeaderBytes - headerBytes + extentCount * extentBytes),
            done: done, into: &memory, at: offset)
        store(contextID, into: &memory, at: offset + headerBytes)
        if isExtended { store(UInt32(extentCount), into: &memory, at: offset + headerBytes + 4) }
        return statusHeaderBytes
    }

    /// Writes one extent of a BLOCK_STATUS chunk.
    ///
    /// `length` fits 32 bits unless `hasLongExtents`. No context here has flags above bit 31.
    package func extent(
        length: UInt64, flags: UInt32, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        if mode == .extended {
            store(length, into: &memory, at: offset)
            store(UInt64(flags), into: &memory, at: offset + 8)
        } else {
            store(UInt32(length), into: &memory, at: offset)
            store(flags, into: &memory, at: offset + 4)
        }
        return extentBytes
    }

    // MARK: Headers

    private func simple(
        _ error: WireError, _ echo: RequestEcho, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        store(Magic.simpleReply, into: &memory, at: offset)
        store(error.rawValue, into: &memory, at: offset + 4)
        store(echo.cookie, into: &memory, at: offset + 8)
        return 16
    }

    /// Writes the header of a chunk with a body of `byteCount` bytes.
    private func chunk(
        _ type: ChunkType, _ echo: RequestEcho, byteCount: UInt64, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) {
        precondition(mode != .simple, "simple replies have no chunks")
        let isExtended = mode == .extended
        store(
            isExtended ? Magic.extendedChunk : Magic.structuredChunk, into: &memory, at: offset)
        store(done ? Self.doneFlag : 0, into: &memory, at: offset + 4)
        store(type.rawValue, into: &memory, at: offset + 6)
        store(echo.cookie, into: &memory, at: offset + 8)
        if isExtended {
            store(echo.offset, into: &memory, at: offset + 16)
            store(byteCount, into: &memory, at: offset + 24)
        } else {
            store(UInt32(byteCount), into: &memory, at: offset + 16)
        }
    }

    private func store<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
        _ value: T, into memory: inout MutableRawSpan, at offset: Int
    ) {
        memory.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }
}
