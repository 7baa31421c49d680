// Which requests reach a disk. One validator turns a raw request into a valid one, or says what the
// peer is told instead and how many payload bytes stand between this request and the next.

/// A request that was checked against the export it is for.
///
/// Only `RequestRules` makes one. Its range lies within the export, its command is one the export
/// offers (CACHE always), and its flags are ones the command knows. READ and WRITE are at most
/// `ProtocolLimits.acceptedPayloadBytesMax` long. Lengths may be zero, but not for BLOCK_STATUS.
package struct ValidRequest: Equatable, Sendable, BitwiseCopyable {
    /// What to do; never `disconnect`.
    package let command: Command
    /// How to do it; only flags that the command knows and the export offers.
    package let flags: CommandFlags
    /// Opaque; echoed in the reply.
    package let cookie: UInt64
    /// First byte concerned; zero for FLUSH.
    package let offset: UInt64
    /// Bytes concerned; zero for FLUSH.
    package let length: UInt64

    fileprivate init(_ command: Command, _ raw: RawRequest) {
        self.command = command
        flags = CommandFlags(rawValue: raw.flags)
        cookie = raw.cookie
        // FLUSH concerns the whole export; what a client writes into its range means nothing.
        offset = command == .flush ? 0 : raw.offset
        length = command == .flush ? 0 : raw.length
    }
}

/// Why a request is refused.
package enum RefusalReason: Equatable, Sendable, BitwiseCopyable, CaseIterable {
    /// The command's number is none of the protocol's.
    case unknownCommand
    /// The transmission flags do not offer the command.
    case commandNotOffered
    /// A change to a read-only export.
    case readOnly
    /// A flag that is unknown, not offered, or for another command.
    case flagNotSupported
    /// A READ over `ProtocolLimits.acceptedPayloadBytesMax`.
    case readTooLong
    /// A WRITE over `ProtocolLimits.acceptedPayloadBytesMax`.
    case writeTooLong
    /// A WRITE or WRITE_ZEROES that does not lie within the export.
    case writeBeyondEnd
    /// Any other range that does not lie within the export.
    case rangeBeyondEnd
    /// BLOCK_STATUS without a selected meta context.
    case noContextSelected
    /// BLOCK_STATUS of no bytes.
    case emptyStatusRange

    /// The error number the client gets.
    package var error: WireError {
        switch self {
        case .readOnly: .notPermitted
        case .writeBeyondEnd: .noSpace
        case .unknownCommand, .commandNotOffered, .flagNotSupported, .readTooLong, .writeTooLong,
            .rangeBeyondEnd, .noContextSelected, .emptyStatusRange:
            .invalidArgument
        }
    }

    /// The text the client gets with structured replies.
    package var text: String {
        switch self {
        case .unknownCommand: "unknown command"
        case .commandNotOffered: "the export does not offer this command"
        case .readOnly: "the export is read-only"
        case .flagNotSupported: "a flag is not supported for this command"
        case .readTooLong: "reads are limited to 64 MiB"
        case .writeTooLong: "writes are limited to 64 MiB"
        case .writeBeyondEnd: "the range reaches past the end of the export"
        case .rangeBeyondEnd: "the range reaches past the end of the export"
        case .noContextSelected: "no meta context was selected"
        case .emptyStatusRange: "the range is empty"
        }
    }
}

/// What a refused request is answered.
package struct Refusal: Equatable, Sendable, BitwiseCopyable {
    /// Opaque; echoed in the reply.
    package let cookie: UInt64
    /// The command's number, known or not.
    package let command: UInt16
    /// The error number the client gets.
    package let error: WireError
    /// Why, in a form that costs nothing to pass on.
    package let reason: RefusalReason
    /// Payload bytes to read and throw away before the next request.
    package let payloadBytesToSkip: UInt64

    fileprivate init(_ raw: RawRequest, _ reason: RefusalReason, payloadBytesToSkip: UInt64) {
        cookie = raw.cookie
        command = raw.type
        error = reason.error
        self.reason = reason
        self.payloadBytesToSkip = payloadBytesToSkip
    }

    /// The text the client gets with structured replies.
    package var text: String { reason.text }
}

/// What becomes of a request.
package enum RequestVerdict: Equatable, Sendable, BitwiseCopyable {
    /// Carry it out; for a WRITE, `length` bytes of payload follow the header.
    case accept(ValidRequest)
    /// Reply with the error, skip the payload, and go on.
    case refuse(Refusal)
    /// Reply with the error, then close: the unread payload is too long to skip.
    case disconnect(Refusal)
    /// The client is done: finish what is in flight and close, without a reply.
    case finish
}

/// The rules for requests on one connection, fixed by what was negotiated.
///
/// Total and allocation-free: every raw request gets a verdict, whatever its fields hold.
package struct RequestRules: Sendable, BitwiseCopyable {
    private let sizeBytes: UInt64
    private let flags: TransmissionFlags
    private let hasContexts: Bool
    private let takesWrites: Bool

    /// The rules for a connection that agreed on `negotiated`.
    package init(_ negotiated: Negotiated) {
        sizeBytes = negotiated.export.sizeBytes
        flags = negotiated.export.flags
        hasContexts = !negotiated.contexts.isEmpty
        takesWrites = negotiated.export.takesWrites
    }

    /// Decides what becomes of `raw`.
    package func check(_ raw: RawRequest) -> RequestVerdict {
        guard let command = Command(rawValue: raw.type) else {
            return .refuse(Refusal(raw, .unknownCommand, payloadBytesToSkip: 0))
        }
        if command == .disconnect { return .finish }
        let payloadBytes = command == .write ? raw.length : 0
        if payloadBytes > ProtocolLimits.skippedPayloadBytesMax {
            return .disconnect(Refusal(raw, .writeTooLong, payloadBytesToSkip: 0))
        }
        if let reason = reasonToRefuse(command, raw) {
            return .refuse(Refusal(raw, reason, payloadBytesToSkip: payloadBytes))
        }
        return .accept(ValidRequest(command, raw))
    }

    private func reasonToRefuse(_ command: Command, _ raw: RawRequest) -> RefusalReason? {
        if let reason = reasonNotToOffer(command) { return reason }
        guard CommandFlags(rawValue: raw.flags).isSubset(of: supportedFlags(command)) else {
            return .flagNotSupported
        }
        let isTooLong = raw.length > ProtocolLimits.acceptedPayloadBytesMax
        switch command {
        case .read:
            if isTooLong { return .readTooLong }
            return isWithinExport(raw) ? nil : .rangeBeyondEnd
        case .write:
            if isTooLong { return .writeTooLong }
            return isWithinExport(raw) ? nil : .writeBeyondEnd
        case .writeZeroes:
            return isWithinExport(raw) ? nil : .writeBeyondEnd
        case .trim, .cache:
            return isWithinExport(raw) ? nil : .rangeBeyondEnd
        case .blockStatus:
            if raw.length == 0 { return .emptyStatusRange }
            return isWithinExport(raw) ? nil : .rangeBeyondEnd
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
            return hasContexts ? nil : .noContextSelected
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
        case .writeZeroes:
            supported.insert(.noHole)
            if flags.contains(.sendFastZero) { supported.insert(.fastZero) }
        case .blockStatus:
            supported.insert(.reqOne)
        case .write, .flush, .trim, .cache, .disconnect:
            break
        }
        return supported
    }

    /// Whether the range ends at or before the export's end; written so that no sum can overflow.
    private func isWithinExport(_ raw: RawRequest) -> Bool {
        raw.offset <= sizeBytes && raw.length <= sizeBytes - raw.offset
    }
}
