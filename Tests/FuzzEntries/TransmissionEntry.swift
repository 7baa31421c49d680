import NBDProtocol

/// Requests on one connection: each gets a verdict that keeps to the export, and a reply that fits
/// where it is written.
enum TransmissionEntry {
    private static let size: UInt64 = 1 << 20
    private static let modes: [ReplyMode] = [.simple, .structured]

    /// The first three bytes choose reply mode and export flags, the rest are requests.
    static func run(_ bytes: [UInt8]) {
        guard bytes.count > 3 else { return }
        let mode = modes[Int(bytes[0]) % modes.count]
        let flags = TransmissionFlags(rawValue: UInt16(bytes[1]) << 8 | UInt16(bytes[2]))
        let contexts =
            bytes[0] & 0x80 == 0 || mode == .simple
            ? [] : [SelectedContext(id: 0, name: "base:allocation", index: 0)]
        let rules = RequestRules(
            Negotiated(
                export: ExportDescription(name: "x", sizeBytes: size, flags: flags),
                replyMode: mode, contexts: contexts))
        var position = 3
        while position < bytes.count {
            let decode = RequestDecoder.decode(bytes.span, at: position)
            guard case .request(let raw, let consumed) = decode else {
                if case .needBytes(let count) = decode {
                    precondition(count > bytes.count - position)
                }
                return
            }
            precondition(consumed > 0 && consumed <= bytes.count - position)
            position += consumed
            guard let payload = judge(raw, rules, mode) else { return }
            position += Int(min(payload, UInt64(bytes.count - position)))
        }
    }

    /// Payload bytes that follow the request, or nil when the connection ends.
    private static func judge(_ raw: RawRequest, _ rules: RequestRules, _ mode: ReplyMode)
        -> UInt64?
    {
        switch rules.check(raw) {
        case .accept(let valid):
            let end = valid.offset.addingReportingOverflow(valid.length)
            precondition(!end.overflow && end.partialValue <= size, "a range beyond the export")
            precondition(valid.cookie == raw.cookie)
            if valid.command == .read || valid.command == .write {
                precondition(valid.length <= ProtocolLimits.acceptedPayloadBytesMax)
            }
            return valid.command == .write ? valid.length : 0
        case .refuse(let refusal):
            reply(refusal, raw, mode)
            precondition(refusal.payloadBytesToSkip <= ProtocolLimits.skippedPayloadBytesMax)
            return refusal.payloadBytesToSkip
        case .disconnect(let refusal):
            reply(refusal, raw, mode)
            return nil
        case .finish:
            return nil
        }
    }

    private static func reply(_ refusal: Refusal, _ raw: RawRequest, _ mode: ReplyMode) {
        precondition(refusal.cookie == raw.cookie && refusal.error != .none)
        precondition(refusal.text.utf8.count <= ProtocolLimits.errorTextBytesMax)
        var buffer = [UInt8](repeating: 0, count: ReplyEncoder.errorBytesMax)
        var span = buffer.mutableSpan
        // SAFETY: bytes hold any value, and the encoder checks every place it writes to.
        var memory = unsafe span.mutableBytes
        let count =
            mode == .simple
            ? ReplyEncoder.simple(error: refusal.error, cookie: raw.cookie, into: &memory, at: 0)
            : ReplyEncoder.errorAtOffset(
                refusal.error, cookie: raw.cookie, offset: raw.offset, text: refusal.text,
                done: true, into: &memory, at: 0)
        precondition(count <= ReplyEncoder.errorBytesMax, "a reply longer than its room")
    }
}
