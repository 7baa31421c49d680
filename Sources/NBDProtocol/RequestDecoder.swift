/// A request as it was on the wire, not yet checked.
package struct RawRequest: Equatable, Sendable, BitwiseCopyable {
    /// Command flags, known or not.
    package var flags: UInt16
    /// The command's number, known or not.
    package var type: UInt16
    /// Opaque; echoed in the reply.
    package var cookie: UInt64
    /// First byte concerned.
    package var offset: UInt64
    /// Bytes concerned or bytes of payload, as the peer has it; may reach past any end.
    package var length: UInt64

    /// What a reply repeats.
    package var echo: RequestEcho { RequestEcho(cookie: cookie, offset: offset) }

    /// A request with the given fields.
    package init(flags: UInt16, type: UInt16, cookie: UInt64, offset: UInt64, length: UInt64) {
        self.flags = flags
        self.type = type
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }
}

/// What is at the place where a request should begin.
package enum RequestDecode: Equatable, Sendable, BitwiseCopyable {
    /// The header is incomplete: this many bytes are needed, counted from the decoded offset.
    case needBytes(atLeast: Int)
    /// A header of `consumed` bytes; its payload follows, if it has one.
    case request(RawRequest, consumed: Int)
    /// The stream is out of step; the connection cannot go on.
    case badMagic
}

/// The two forms of a request header; the handshake decides which one is used.
package enum RequestHeader: Sendable, BitwiseCopyable, CaseIterable {
    /// With a 32-bit length.
    case compact
    /// With a 64-bit length.
    case extended

    /// The form that requests have when they are answered in `mode`.
    package init(_ mode: ReplyMode) { self = mode == .extended ? .extended : .compact }

    /// Size of the header, in bytes.
    package var byteCount: Int { self == .compact ? 28 : 32 }
    /// What the header begins with.
    package var magic: UInt32 { self == .compact ? Magic.request : Magic.extendedRequest }
}

/// Takes request headers from the stream.
package enum RequestDecoder {
    /// Decodes the header of form `header` that begins `offset` bytes into `input`.
    ///
    /// `offset` is at most `input.count`. Allocates nothing.
    package static func decode(
        _ input: Span<UInt8>, at offset: Int, _ header: RequestHeader
    ) -> RequestDecode {
        let available = input.count - offset
        // A wrong magic is reported as soon as it is complete, whatever follows.
        if available >= 4, input.bigEndian(UInt32.self, at: offset) != header.magic {
            return .badMagic
        }
        guard available >= header.byteCount else { return .needBytes(atLeast: header.byteCount) }
        let length =
            header == .compact
            ? UInt64(input.bigEndian(UInt32.self, at: offset + 24))
            : input.bigEndian(UInt64.self, at: offset + 24)
        let request = RawRequest(
            flags: input.bigEndian(UInt16.self, at: offset + 4),
            type: input.bigEndian(UInt16.self, at: offset + 6),
            cookie: input.bigEndian(UInt64.self, at: offset + 8),
            offset: input.bigEndian(UInt64.self, at: offset + 16),
            length: length)
        return .request(request, consumed: header.byteCount)
    }
}
