// What the server says during the handshake, as bytes appended to a reply.

extension [UInt8] {
    /// Appends the header of a reply to option `code`; `byteCount` bytes of data must follow.
    private mutating func appendOptionHeader(
        code: UInt32, type: OptionReplyType, byteCount: Int
    ) {
        appendBigEndian(Magic.optionReply)
        appendBigEndian(code)
        appendBigEndian(type.rawValue)
        appendBigEndian(UInt32(byteCount))
    }

    /// Appends the reply that ends option `code` with success.
    mutating func appendAcknowledge(code: UInt32) {
        appendOptionHeader(code: code, type: .acknowledge, byteCount: 0)
    }

    /// Appends the reply that ends option `code` with an error and its text.
    mutating func appendRefusal(code: UInt32, _ refusal: OptionRefusal) {
        let text = refusal.text.utf8
        appendOptionHeader(code: code, type: refusal.replyType, byteCount: text.count)
        append(contentsOf: text)
    }

    /// Appends one export of a LIST.
    ///
    /// The name is at most `ProtocolLimits.stringBytesMax` bytes; the description is cut to that.
    mutating func appendListing(_ listing: ExportListing) {
        let name = listing.name.utf8
        let description = Self.boundedBytes(listing.description ?? "")
        appendOptionHeader(
            code: OptionCode.list.rawValue, type: .server,
            byteCount: 4 + name.count + description.count)
        appendBigEndian(UInt32(name.count))
        append(contentsOf: name)
        append(contentsOf: description)
    }

    /// Appends one meta context of a LIST_META_CONTEXT or SET_META_CONTEXT.
    mutating func appendMetaContext(code: UInt32, id: UInt32, name: String) {
        appendOptionHeader(code: code, type: .metaContext, byteCount: 4 + name.utf8.count)
        appendBigEndian(id)
        append(contentsOf: name.utf8)
    }

    /// Appends what INFO and GO report about `export`, whose flags are the negotiated ones.
    ///
    /// EXPORT and BLOCK_SIZE always, NAME and DESCRIPTION on request.
    mutating func appendInfo(code: UInt32, _ export: ExportDescription, for request: InfoRequest) {
        appendInfoHeader(code: code, .export, byteCount: 10)
        appendBigEndian(export.sizeBytes)
        appendBigEndian(export.flags.rawValue)
        if request.wantsName && export.name.utf8.count <= ProtocolLimits.stringBytesMax {
            appendInfoHeader(code: code, .name, byteCount: export.name.utf8.count)
            append(contentsOf: export.name.utf8)
        }
        if request.wantsDescription, let description = export.description {
            let bytes = Self.boundedBytes(description)
            appendInfoHeader(code: code, .description, byteCount: bytes.count)
            append(contentsOf: bytes)
        }
        appendInfoHeader(code: code, .blockSize, byteCount: 12)
        appendBigEndian(export.minimumBlockBytes)
        appendBigEndian(export.preferredBlockBytes)
        appendBigEndian(export.maximumPayloadBytes)
    }

    private mutating func appendInfoHeader(code: UInt32, _ type: InfoType, byteCount: Int) {
        appendOptionHeader(code: code, type: .info, byteCount: 2 + byteCount)
        appendBigEndian(type.rawValue)
    }

    /// Appends the answer to EXPORT_NAME, which has no header.
    mutating func appendExportName(_ export: ExportDescription, noZeroes: Bool) {
        appendBigEndian(export.sizeBytes)
        appendBigEndian(export.flags.rawValue)
        if !noZeroes { append(contentsOf: repeatElement(0, count: 124)) }
    }

    /// The bytes of `text`, cut between characters to what a string on the wire may have.
    private static func boundedBytes(_ text: String) -> [UInt8] {
        let count = text.utf8.span.utf8PrefixCount(limit: ProtocolLimits.stringBytesMax)
        return [UInt8](text.utf8.prefix(count))
    }
}
