/// A request as it stands on the wire, not yet checked.
package struct RawRequest: Equatable, Sendable, BitwiseCopyable {
    /// Command flags, known or not.
    package var flags: UInt16
    /// The command's number, known or not.
    package var type: UInt16
    /// Opaque; echoed in the reply.
    package var cookie: UInt64
    /// First byte concerned.
    package var offset: UInt64
    /// Bytes concerned, as the peer has it; may reach past any end.
    package var length: UInt64

    /// A request with the given fields.
    package init(flags: UInt16, type: UInt16, cookie: UInt64, offset: UInt64, length: UInt64) {
        self.flags = flags
        self.type = type
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }
}

/// What was found where a request should begin.
package enum RequestDecode: Equatable, Sendable, BitwiseCopyable {
    /// The header is incomplete: this many bytes are needed, counted from the decoded offset.
    case needBytes(atLeast: Int)
    /// A header of `consumed` bytes; the payload of a WRITE follows it.
    case request(RawRequest, consumed: Int)
    /// The stream is out of step; the connection cannot go on.
    case badMagic
}

/// Takes request headers from the stream.
package enum RequestDecoder {
    /// Size of a compact request header, in bytes.
    package static let compactHeaderBytes = 28

    /// Decodes the header that begins `offset` bytes into `input`.
    ///
    /// `offset` is at most `input.count`. Allocates nothing.
    package static func decode(_ input: Span<UInt8>, at offset: Int) -> RequestDecode {
        let available = input.count - offset
        guard available >= compactHeaderBytes else {
            // A wrong magic is told as soon as it is there, whatever comes after it.
            if available >= 4, input.bigEndian(UInt32.self, at: offset) != Magic.request {
                return .badMagic
            }
            return .needBytes(atLeast: compactHeaderBytes)
        }
        guard input.bigEndian(UInt32.self, at: offset) == Magic.request else { return .badMagic }
        let request = RawRequest(
            flags: input.bigEndian(UInt16.self, at: offset + 4),
            type: input.bigEndian(UInt16.self, at: offset + 6),
            cookie: input.bigEndian(UInt64.self, at: offset + 8),
            offset: input.bigEndian(UInt64.self, at: offset + 16),
            length: UInt64(input.bigEndian(UInt32.self, at: offset + 24)))
        return .request(request, consumed: compactHeaderBytes)
    }
}
