// Which requests reach a disk. One validator turns a raw request into a valid one, or says which
// answer is sent instead and how many payload bytes lie between this request and the next.

/// The rules for requests on one connection, fixed by what was negotiated.
///
/// Total and allocation-free: every raw request gets a verdict, whatever its fields hold.
package struct RequestRules: Sendable, BitwiseCopyable {
    private let sizeBytes: UInt64
    private let flags: TransmissionFlags
    private let isExtended: Bool
    private let contexts: ContextSet
    private let takesWrites: Bool

    /// Size of the effect length in front of the ids in a BLOCK_STATUS payload, in bytes.
    private static let effectLengthBytes: UInt64 = 8
    /// Size of one id there, in bytes.
    private static let contextIDBytes: UInt64 = 4

    /// The rules for a connection that agreed on `negotiated`.
    package init(_ negotiated: Negotiated) {
        sizeBytes = negotiated.export.sizeBytes
        flags = negotiated.export.flags
        isExtended = negotiated.replyMode == .extended
        contexts = ContextSet(negotiated.contexts)
        takesWrites = negotiated.export.takesWrites
    }

    /// Bytes of payload behind the header of `raw`, known or not.
    ///
    /// A WRITE's length is always its payload's. With extended headers the specification wants the
    /// flag beside it, which qemu (8.2 to 10.0 at least) leaves out; no client sends such a WRITE
    /// without its payload.
    private func payloadBytes(_ raw: RawRequest) -> UInt64 {
        let hasPayload =
            raw.type == Command.write.rawValue
            || (isExtended && CommandFlags(rawValue: raw.flags).contains(.payloadLength))
        return hasPayload ? raw.length : 0
    }

    /// How many bytes of payload `check` has to see; zero but for a BLOCK_STATUS that names
    /// contexts.
    ///
    /// At most a length and an id for each selected context.
    package func payloadBytesToSee(_ raw: RawRequest) -> Int {
        guard raw.type == Command.blockStatus.rawValue,
            reasonToRefuse(.blockStatus, raw) == nil
        else { return 0 }
        return Int(payloadBytes(raw))
    }

    /// Decides what becomes of `raw`.
    ///
    /// `payload` is what `payloadBytesToSee` asks for and follows the header; it needs no skipping.
    package func check(_ raw: RawRequest, payload: Span<UInt8> = Span()) -> RequestVerdict {
        let command = Command(rawValue: raw.type)
        if command == .disconnect { return .finish }
        let payloadBytes = payloadBytes(raw)
        if let reason = reasonToHangUp(command, raw, payloadBytes) {
            return .disconnect(Refusal(raw, reason, payloadBytesToSkip: 0))
        }
        guard let command else {
            return .refuse(Refusal(raw, .unknownCommand, payloadBytesToSkip: payloadBytes))
        }
        if let reason = reasonToRefuse(command, raw) {
            return .refuse(Refusal(raw, reason, payloadBytesToSkip: payloadBytes))
        }
        guard command == .blockStatus else {
            return .accept(ValidRequest(command, raw, length: raw.length))
        }
        return payloadBytes > 0 ? checkNamed(raw, payload) : checkStatus(raw, raw.length, contexts)
    }

    /// Why nothing that follows this header can be understood.
    private func reasonToHangUp(
        _ command: Command?, _ raw: RawRequest, _ payloadBytes: UInt64
    ) -> RefusalReason? {
        guard command == .write else {
            return payloadBytes > ProtocolLimits.strayPayloadBytesMax ? .strayPayloadTooLong : nil
        }
        return payloadBytes > ProtocolLimits.skippedPayloadBytesMax ? .writeTooLong : nil
    }

    private func reasonToRefuse(_ command: Command, _ raw: RawRequest) -> RefusalReason? {
        if let reason = reasonNotToOffer(command) { return reason }
        let flags = CommandFlags(rawValue: raw.flags)
        guard flags.isSubset(of: supportedFlags(command)) else { return .flagNotSupported }
        let isTooLong = raw.length > ProtocolLimits.acceptedPayloadBytesMax
        switch command {
        case .read:
            if isTooLong { return .readTooLong }
            return isWithinExport(raw.offset, raw.length) ? nil : .rangeBeyondEnd
        case .write:
            if isTooLong { return .writeTooLong }
            return isWithinExport(raw.offset, raw.length) ? nil : .writeBeyondEnd
        case .writeZeroes:
            return isWithinExport(raw.offset, raw.length) ? nil : .writeBeyondEnd
        case .trim, .cache:
            return isWithinExport(raw.offset, raw.length) ? nil : .rangeBeyondEnd
        case .blockStatus:
            // The range is checked later: it may be in the payload.
            guard flags.contains(.payloadLength) else { return nil }
            return isContextList(byteCount: raw.length) ? nil : .malformedContextList
        case .flush, .disconnect:
            return nil
        }
    }

    private func reasonNotToOffer(_ command: Command) -> RefusalReason? {
        let isReadOnly = flags.contains(.readOnly)
        switch command {
        case .write:
            return isReadOnly || !takesWrites ? .readOnly : nil
        case .trim:
            if isReadOnly { return .readOnly }
            return flags.contains(.sendTrim) ? nil : .commandNotOffered
        case .writeZeroes:
            if isReadOnly { return .readOnly }
            return flags.contains(.sendWriteZeroes) ? nil : .commandNotOffered
        case .flush:
            return flags.contains(.sendFlush) ? nil : .commandNotOffered
        case .blockStatus:
            return contexts.isEmpty ? .noContextSelected : nil
        case .read, .cache, .disconnect:
            // A hint that is not offered does no harm, and some clients send it all the same.
            return nil
        }
    }

    private func supportedFlags(_ command: Command) -> CommandFlags {
        // Once offered, FUA is legal on every command, also where it changes nothing.
        var supported: CommandFlags = flags.contains(.sendFUA) ? .fua : []
        switch command {
        case .read:
            if flags.contains(.sendDF) { supported.insert(.df) }
        case .write:
            if isExtended { supported.insert(.payloadLength) }
        case .writeZeroes:
            supported.insert(.noHole)
            if flags.contains(.sendFastZero) { supported.insert(.fastZero) }
        case .blockStatus:
            supported.insert(.reqOne)
            if isExtended, flags.contains(.blockStatusPayload) { supported.insert(.payloadLength) }
        case .flush, .trim, .cache, .disconnect:
            break
        }
        return supported
    }

    /// Whether the range ends at or before the export's end; written so that no sum can overflow.
    private func isWithinExport(_ offset: UInt64, _ length: UInt64) -> Bool {
        offset <= sizeBytes && length <= sizeBytes - offset
    }

    // MARK: Block status

    /// Whether a payload of that size can be a length and ids of selected contexts, each once.
    private func isContextList(byteCount: UInt64) -> Bool {
        guard byteCount > Self.effectLengthBytes else { return false }
        let idBytes = byteCount - Self.effectLengthBytes
        return idBytes.isMultiple(of: Self.contextIDBytes)
            && idBytes / Self.contextIDBytes <= UInt64(contexts.count)
    }

    private func checkNamed(_ raw: RawRequest, _ payload: Span<UInt8>) -> RequestVerdict {
        precondition(payload.count == Int(raw.length), "a context list is seen whole")
        var named = ContextSet()
        var offset = Int(Self.effectLengthBytes)
        while offset < payload.count {
            let id = payload.bigEndian(UInt32.self, at: offset)
            guard contexts.contains(id), named.insert(id) else {
                return .refuse(Refusal(raw, .wrongContextID, payloadBytesToSkip: 0))
            }
            offset += Int(Self.contextIDBytes)
        }
        return checkStatus(raw, payload.bigEndian(UInt64.self, at: 0), named)
    }

    private func checkStatus(
        _ raw: RawRequest, _ length: UInt64, _ asked: ContextSet
    ) -> RequestVerdict {
        let reason: RefusalReason? =
            if length == 0 {
                .emptyStatusRange
            } else if !isWithinExport(raw.offset, length) {
                .rangeBeyondEnd
            } else {
                nil
            }
        if let reason { return .refuse(Refusal(raw, reason, payloadBytesToSkip: 0)) }
        return .acceptStatus(ValidRequest(.blockStatus, raw, length: length), of: asked)
    }
}
