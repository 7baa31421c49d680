import NBDProtocol

/// Requests on one connection: each gets a verdict that keeps to the export, and a reply that fits
/// where it is written.
enum TransmissionEntry {
    private static let size: UInt64 = 1 << 20
    private static let modes: [ReplyMode] = [.simple, .structured, .extended]

    /// The first three bytes choose reply mode and export flags, the rest are requests.
    static func run(_ bytes: [UInt8]) {
        guard bytes.count > 3 else { return }
        let mode = modes[Int(bytes[0]) % modes.count]
        let flags = TransmissionFlags(rawValue: UInt16(bytes[1]) << 8 | UInt16(bytes[2]))
        let contexts =
            bytes[0] & 0x80 == 0 || mode == .simple
            ? [] : [SelectedContext(id: 0, name: "base:allocation", index: 0)]
        var reader = RequestReader(
            Negotiated(
                export: ExportDescription(name: "x", sizeBytes: size, flags: flags),
                replyMode: mode, contexts: contexts))
        var position = 3
        while true {
            let left = bytes.count - position
            switch reader.next(bytes.span.extracting(position...)) {
            case .needBytes(let count):
                precondition(count > left && count <= RequestReader.inputBytesMax)
                return
            case .badMagic: return
            case .progressed(let consumed):
                precondition(consumed > 0 && consumed <= left)
                position += consumed
            case .request(let verdict, let consumed):
                precondition(consumed > 0 && consumed <= left)
                position += consumed
                guard let payload = judge(verdict, ReplyEncoder(mode)) else { return }
                position += Int(min(payload, UInt64(bytes.count - position)))
            }
        }
    }

    /// Payload bytes that the request's own command takes, or nil when the connection ends.
    private static func judge(_ verdict: RequestVerdict, _ replies: ReplyEncoder) -> UInt64? {
        switch verdict {
        case .accept(let valid):
            check(valid)
            return valid.command == .write ? valid.length : 0
        case .acceptStatus(let valid, let asked):
            check(valid)
            precondition(valid.command == .blockStatus && !asked.isEmpty && valid.length > 0)
            return 0
        case .refuse(let refusal):
            reply(refusal, replies)
            precondition(refusal.payloadBytesToSkip <= ProtocolLimits.skippedPayloadBytesMax)
            return 0
        case .disconnect(let refusal):
            reply(refusal, replies)
            return nil
        case .finish:
            return nil
        }
    }

    private static func check(_ valid: ValidRequest) {
        let end = valid.offset.addingReportingOverflow(valid.length)
        precondition(!end.overflow && end.partialValue <= size, "a range beyond the export")
        if valid.command == .read || valid.command == .write {
            precondition(valid.length <= ProtocolLimits.acceptedPayloadBytesMax)
        }
    }

    private static func reply(_ refusal: Refusal, _ replies: ReplyEncoder) {
        precondition(refusal.error != .none)
        precondition(refusal.text.utf8.count <= ProtocolLimits.errorTextBytesMax)
        var buffer = [UInt8](repeating: 0, count: ReplyEncoder.errorBytesMax)
        var span = buffer.mutableSpan
        // SAFETY: bytes hold any value, and the encoder checks every place it writes to.
        var memory = unsafe span.mutableBytes
        let count = replies.error(
            refusal.error, refusal.echo, text: refusal.text, place: refusal.echo.offset,
            into: &memory, at: 0)
        precondition(count <= ReplyEncoder.errorBytesMax, "a reply longer than its room")
    }
}
