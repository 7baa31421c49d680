// Replies of the transmission phase, written into memory the caller owns. Bulk data is not copied
// here: the caller sends it right after the header.

/// Writes reply headers and small chunks.
///
/// Each function writes at `offset` and returns how many bytes it wrote. It traps when they do not
/// fit; the sizes below say what is needed. Nothing allocates.
package enum ReplyEncoder {
    /// Size of a simple reply's header, in bytes.
    package static let simpleBytes = 16
    /// Size of a structured chunk's header, in bytes.
    package static let chunkHeaderBytes = 20
    /// Size of what stands in front of a READ chunk's data, in bytes.
    package static let offsetDataHeaderBytes = 28
    /// Size of a hole chunk, in bytes.
    package static let offsetHoleBytes = 32
    /// Size of what stands in front of a BLOCK_STATUS chunk's extents, in bytes.
    package static let blockStatusHeaderBytes = 24
    /// Size of one extent, in bytes.
    package static let extentBytes = 8
    /// Size of the longest error chunk, with or without an offset, in bytes.
    package static let errorBytesMax =
        chunkHeaderBytes + 4 + 2 + ProtocolLimits.errorTextBytesMax + 8

    /// Marks the last chunk of a reply.
    private static let doneFlag: UInt16 = 1

    /// Writes a simple reply; the data of a successful READ follows it.
    package static func simple(
        error: WireError, cookie: UInt64, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        store(Magic.simpleReply, into: &memory, at: offset)
        store(error.rawValue, into: &memory, at: offset + 4)
        store(cookie, into: &memory, at: offset + 8)
        return simpleBytes
    }

    /// Writes the header of a READ chunk; `dataBytes` bytes of data follow it.
    ///
    /// `offset` is where the data lies in the export. `dataBytes` is at least one and at most
    /// 2^32 - 9. With `done`, no error may be found after this.
    package static func offsetData(
        cookie: UInt64, offset dataOffset: UInt64, dataBytes: UInt32, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        chunkHeader(
            .offsetData, cookie: cookie, byteCount: 8 + dataBytes, done: done,
            into: &memory, at: offset)
        store(dataOffset, into: &memory, at: offset + chunkHeaderBytes)
        return offsetDataHeaderBytes
    }

    /// Writes a READ chunk that says `length` bytes at `offset` of the export are zeros.
    package static func offsetHole(
        cookie: UInt64, offset holeOffset: UInt64, length: UInt32, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        chunkHeader(
            .offsetHole, cookie: cookie, byteCount: 12, done: done, into: &memory, at: offset)
        store(holeOffset, into: &memory, at: offset + chunkHeaderBytes)
        store(length, into: &memory, at: offset + chunkHeaderBytes + 8)
        return offsetHoleBytes
    }

    /// Writes the empty chunk that ends a reply.
    package static func none(
        cookie: UInt64, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        chunkHeader(.none, cookie: cookie, byteCount: 0, done: true, into: &memory, at: offset)
        return chunkHeaderBytes
    }

    /// Writes an error chunk with a text.
    ///
    /// Texts longer than `ProtocolLimits.errorTextBytesMax` are cut between characters. `error`
    /// is not `.none`.
    package static func error(
        _ error: WireError, cookie: UInt64, text: String, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        Self.error(
            error, cookie: cookie, text: text.utf8.span, done: done, into: &memory, at: offset)
    }

    /// Writes an error chunk with a text given as UTF-8.
    package static func error(
        _ error: WireError, cookie: UInt64, text: Span<UInt8>, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        precondition(error != .none, "an error chunk needs an error")
        let textBytes = text.utf8PrefixCount(limit: ProtocolLimits.errorTextBytesMax)
        chunkHeader(
            .error, cookie: cookie, byteCount: UInt32(6 + textBytes), done: done,
            into: &memory, at: offset)
        let bodyBytes = errorBody(
            error, text: text, textBytes: textBytes, into: &memory, at: offset + chunkHeaderBytes)
        return chunkHeaderBytes + bodyBytes
    }

    /// Writes an error chunk with a text and the place in the export where it happened.
    package static func errorAtOffset(
        _ error: WireError, cookie: UInt64, offset errorOffset: UInt64, text: String, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        errorAtOffset(
            error, cookie: cookie, offset: errorOffset, text: text.utf8.span, done: done,
            into: &memory, at: offset)
    }

    /// Writes an error chunk with a text given as UTF-8 and the place where it happened.
    package static func errorAtOffset(
        _ error: WireError, cookie: UInt64, offset errorOffset: UInt64, text: Span<UInt8>,
        done: Bool, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        precondition(error != .none, "an error chunk needs an error")
        let textBytes = text.utf8PrefixCount(limit: ProtocolLimits.errorTextBytesMax)
        chunkHeader(
            .errorAtOffset, cookie: cookie, byteCount: UInt32(14 + textBytes), done: done,
            into: &memory, at: offset)
        let bodyBytes = errorBody(
            error, text: text, textBytes: textBytes, into: &memory, at: offset + chunkHeaderBytes)
        store(errorOffset, into: &memory, at: offset + chunkHeaderBytes + bodyBytes)
        return chunkHeaderBytes + bodyBytes + 8
    }

    /// Writes the header of a BLOCK_STATUS chunk; `extentCount` extents follow it.
    ///
    /// `extentCount` is at least one and at most 2^20, the specification's bound.
    package static func blockStatus(
        cookie: UInt64, contextID: UInt32, extentCount: Int, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        precondition(extentCount >= 1, "a status chunk needs an extent")
        precondition(extentCount <= 1 << 20, "a status chunk holds at most 2^20 extents")
        chunkHeader(
            .blockStatus, cookie: cookie, byteCount: UInt32(4 + extentCount * extentBytes),
            done: done, into: &memory, at: offset)
        store(contextID, into: &memory, at: offset + chunkHeaderBytes)
        return blockStatusHeaderBytes
    }

    /// Writes one extent of a BLOCK_STATUS chunk.
    package static func extent(
        length: UInt32, flags: UInt32, into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        store(length, into: &memory, at: offset)
        store(flags, into: &memory, at: offset + 4)
        return extentBytes
    }

    private static func chunkHeader(
        _ type: ChunkType, cookie: UInt64, byteCount: UInt32, done: Bool,
        into memory: inout MutableRawSpan, at offset: Int
    ) {
        store(Magic.structuredChunk, into: &memory, at: offset)
        store(done ? doneFlag : 0, into: &memory, at: offset + 4)
        store(type.rawValue, into: &memory, at: offset + 6)
        store(cookie, into: &memory, at: offset + 8)
        store(byteCount, into: &memory, at: offset + 16)
    }

    /// Writes error number, text length and text; returns their size.
    private static func errorBody(
        _ error: WireError, text: Span<UInt8>, textBytes: Int,
        into memory: inout MutableRawSpan, at offset: Int
    ) -> Int {
        store(error.rawValue, into: &memory, at: offset)
        store(UInt16(textBytes), into: &memory, at: offset + 4)
        for index in 0..<textBytes {
            memory.storeBytes(of: text[index], toByteOffset: offset + 6 + index, as: UInt8.self)
        }
        return 6 + textBytes
    }

    private static func store<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
        _ value: T, into memory: inout MutableRawSpan, at offset: Int
    ) {
        memory.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }
}
