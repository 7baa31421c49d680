// The payloads of options, taken apart. Every length is compared with what is left of the payload
// before it is used, so no field can reach past the option it came in.

/// Why an option is refused: the reply's type and its text.
///
/// Texts are fixed and never repeat what the peer sent.
enum OptionRefusal: Error, Equatable, Sendable {
    case unknownOption
    case tlsNotOffered
    case tlsRequired
    case tlsBefore
    case payloadNotAllowed
    case payloadTruncated
    case trailingBytes
    case stringTooLong
    case notText
    case optionTooLarge
    case tooManyQueries
    case noSuchExport
    case exportChanged
    case listedBefore
    case structuredBefore
    case structuredAfterExtended
    case extendedBefore
    case structuredRepliesRequired

    var replyType: OptionReplyType {
        switch self {
        case .unknownOption, .tlsNotOffered: .unsupported
        case .tlsRequired: .tlsRequired
        case .payloadNotAllowed, .payloadTruncated, .trailingBytes, .stringTooLong, .notText,
            .listedBefore, .tlsBefore, .structuredBefore, .extendedBefore,
            .structuredRepliesRequired:
            .invalid
        case .structuredAfterExtended: .extendedHeadersRequired
        case .optionTooLarge, .tooManyQueries: .tooBig
        case .noSuchExport, .exportChanged: .unknownExport
        }
    }

    var text: String {
        switch self {
        case .unknownOption: "this option is not supported"
        case .tlsNotOffered: "TLS is not offered here"
        case .tlsRequired: "use TLS: send STARTTLS first"
        case .tlsBefore: "TLS is on already"
        case .payloadNotAllowed: "this option takes no data"
        case .payloadTruncated: "a length reaches past the end of the option"
        case .trailingBytes: "there are bytes after the option's last field"
        case .stringTooLong: "a name or query is longer than 4096 bytes"
        case .notText: "a name or query is not UTF-8 text without NUL"
        case .optionTooLarge: "the option is longer than 65536 bytes"
        case .tooManyQueries: "the option has more than 256 queries"
        case .noSuchExport: "there is no export of that name"
        case .exportChanged: "the export changed since its contexts were set, connect again"
        case .listedBefore: "exports are listed once for each connection"
        case .structuredBefore: "structured replies are on already"
        case .structuredAfterExtended: "extended headers are on and include structured replies"
        case .extendedBefore: "extended headers are on already"
        case .structuredRepliesRequired: "ask for structured replies before setting contexts"
        }
    }
}

/// The payload of INFO and GO.
struct InfoRequest {
    let exportName: String
    let wantsName: Bool
    let wantsDescription: Bool

    init(_ payload: Span<UInt8>) throws(OptionRefusal) {
        var cursor = PayloadCursor()
        let nameBytes = try cursor.uint32(in: payload)
        exportName = try cursor.string(byteCount: nameBytes, in: payload)
        let requestCount = try cursor.uint16(in: payload)
        var requested: (name: Bool, description: Bool) = (false, false)
        for _ in 0..<requestCount {
            let type = InfoType(rawValue: try cursor.uint16(in: payload))
            if type == .name { requested.name = true }
            if type == .description { requested.description = true }
        }
        try cursor.expectEnd(of: payload)
        wantsName = requested.name
        wantsDescription = requested.description
    }
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
struct MetaContextRequest {
    let exportName: String
    let queries: [String]

    init(_ payload: Span<UInt8>) throws(OptionRefusal) {
        var cursor = PayloadCursor()
        let nameBytes = try cursor.uint32(in: payload)
        exportName = try cursor.string(byteCount: nameBytes, in: payload)
        let queryCount = try cursor.uint32(in: payload)
        // Each query has a length field, so a count that cannot be true is told from one that is
        // merely too high.
        let queriesThatFit = cursor.remaining(in: payload) / MemoryLayout<UInt32>.size
        guard UInt64(queryCount) <= UInt64(queriesThatFit) else {
            throw .payloadTruncated
        }
        guard queryCount <= UInt32(ProtocolLimits.queriesMax) else { throw .tooManyQueries }
        var queries: [String] = []
        queries.reserveCapacity(Int(queryCount))
        for _ in 0..<queryCount {
            let queryBytes = try cursor.uint32(in: payload)
            queries.append(try cursor.string(byteCount: queryBytes, in: payload))
        }
        try cursor.expectEnd(of: payload)
        self.queries = queries
    }
}

/// A place in an option's payload, never beyond its end.
struct PayloadCursor {
    private var offset = 0

    /// Bytes not yet read.
    func remaining(in payload: Span<UInt8>) -> Int { payload.count - offset }

    mutating func uint32(in payload: Span<UInt8>) throws(OptionRefusal) -> UInt32 {
        guard remaining(in: payload) >= 4 else { throw .payloadTruncated }
        defer { offset += 4 }
        return payload.bigEndian(UInt32.self, at: offset)
    }

    mutating func uint16(in payload: Span<UInt8>) throws(OptionRefusal) -> UInt16 {
        guard remaining(in: payload) >= 2 else { throw .payloadTruncated }
        defer { offset += 2 }
        return payload.bigEndian(UInt16.self, at: offset)
    }

    /// A name or query: at most 4096 bytes of UTF-8 without NUL.
    ///
    /// `byteCount` is the peer's claim and is compared with both bounds before anything is read.
    mutating func string(
        byteCount: UInt32, in payload: Span<UInt8>
    ) throws(OptionRefusal) -> String {
        guard UInt64(byteCount) <= UInt64(remaining(in: payload)) else { throw .payloadTruncated }
        guard byteCount <= UInt32(ProtocolLimits.stringBytesMax) else { throw .stringTooLong }
        let end = offset + Int(byteCount)
        let bytes = payload.extracting(offset..<end)
        for index in bytes.indices where bytes[index] == 0 { throw .notText }
        guard let text = try? UTF8Span(validating: bytes) else { throw .notText }
        offset = end
        return String(copying: text)
    }

    func expectEnd(of payload: Span<UInt8>) throws(OptionRefusal) {
        guard remaining(in: payload) == 0 else { throw .trailingBytes }
    }
}
