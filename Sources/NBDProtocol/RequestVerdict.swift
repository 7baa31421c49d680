// Verdict on a request: carried out, or answered with an error.

/// What every reply repeats of its request.
package struct RequestEcho: Equatable, Sendable, BitwiseCopyable {
    /// Opaque; in every form of reply.
    package let cookie: UInt64
    /// The offset just as the client sent it; in extended replies.
    package let offset: UInt64

    /// What a reply to the request with these fields repeats.
    package init(cookie: UInt64, offset: UInt64) {
        self.cookie = cookie
        self.offset = offset
    }
}

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
    /// What the reply repeats.
    package let echo: RequestEcho
    /// First byte concerned; zero for FLUSH.
    package let offset: UInt64
    /// Bytes concerned; zero for FLUSH.
    package let length: UInt64

    /// A request that did not come over NBD and was checked where it came from: its range lies
    /// within the disk, and the disk takes what it asks for.
    package init(checked command: Command, flags: CommandFlags, offset: UInt64, length: UInt64) {
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        echo = RequestEcho(cookie: 0, offset: offset)
    }

    /// `length` is the effect's: for BLOCK_STATUS with a payload not the header's.
    init(_ command: Command, _ raw: RawRequest, length: UInt64) {
        self.command = command
        // That flag is about the header, which has been read.
        flags = CommandFlags(rawValue: raw.flags).subtracting(.payloadLength)
        echo = raw.echo
        // FLUSH concerns the whole export; what a client writes into its range means nothing.
        offset = command == .flush ? 0 : raw.offset
        self.length = command == .flush ? 0 : length
    }
}

/// Why a request is refused.
package enum RefusalReason: Equatable, Sendable, BitwiseCopyable, CaseIterable {
    /// The protocol has no command of that number.
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
    /// A payload over `ProtocolLimits.strayPayloadBytesMax` where none belongs.
    case strayPayloadTooLong
    /// A WRITE or WRITE_ZEROES that does not lie within the export.
    case writeBeyondEnd
    /// Any other range that does not lie within the export.
    case rangeBeyondEnd
    /// BLOCK_STATUS without a selected meta context.
    case noContextSelected
    /// BLOCK_STATUS of no bytes.
    case emptyStatusRange
    /// A BLOCK_STATUS payload that is not a length and one to all of the selected contexts' ids.
    case malformedContextList
    /// A BLOCK_STATUS payload that names a context that was not selected, or one twice.
    case wrongContextID

    /// The error number the client gets.
    package var error: WireError {
        switch self {
        case .readOnly: .notPermitted
        case .writeBeyondEnd: .noSpace
        case .unknownCommand, .commandNotOffered, .flagNotSupported, .readTooLong, .writeTooLong,
            .strayPayloadTooLong, .rangeBeyondEnd, .noContextSelected, .emptyStatusRange,
            .malformedContextList, .wrongContextID:
            .invalidArgument
        }
    }

    /// The text the client gets when replies are chunks.
    package var text: String {
        switch self {
        case .unknownCommand: "unknown command"
        case .commandNotOffered: "the export does not offer this command"
        case .readOnly: "the export is read-only"
        case .flagNotSupported: "a flag is not supported for this command"
        case .readTooLong: "reads are limited to 64 MiB"
        case .writeTooLong: "writes are limited to 64 MiB"
        case .strayPayloadTooLong: "payloads are limited to 64 MiB"
        case .writeBeyondEnd: "the range reaches past the end of the export"
        case .rangeBeyondEnd: "the range reaches past the end of the export"
        case .noContextSelected: "no meta context was selected"
        case .emptyStatusRange: "the range is empty"
        case .malformedContextList: "the payload is not a length and ids of selected contexts"
        case .wrongContextID: "the payload names a context twice, or one that was not selected"
        }
    }
}

/// The answer to a refused request.
package struct Refusal: Equatable, Sendable, BitwiseCopyable {
    /// What the reply repeats.
    package let echo: RequestEcho
    /// The command's number, known or not.
    package let command: UInt16
    /// The error number the client gets.
    package let error: WireError
    /// Why, in a form that costs nothing to pass on.
    package let reason: RefusalReason
    /// Payload bytes to read and throw away before the next request.
    package let payloadBytesToSkip: UInt64

    init(_ raw: RawRequest, _ reason: RefusalReason, payloadBytesToSkip: UInt64) {
        echo = raw.echo
        command = raw.type
        error = reason.error
        self.reason = reason
        self.payloadBytesToSkip = payloadBytesToSkip
    }

    /// The text the client gets when replies are chunks.
    package var text: String { reason.text }
}

/// The verdict on a request.
package enum RequestVerdict: Equatable, Sendable, BitwiseCopyable {
    /// Carry it out; for a WRITE, `length` bytes of payload follow.
    ///
    /// Anything but BLOCK_STATUS.
    case accept(ValidRequest)
    /// Carry a BLOCK_STATUS out and answer for these contexts, of which there is at least one.
    case acceptStatus(ValidRequest, of: ContextSet)
    /// Reply with the error, skip the payload, and go on.
    case refuse(Refusal)
    /// Reply with the error, then close: the unread payload is too long to skip.
    case disconnect(Refusal)
    /// The client is done: finish what is in flight and close, without a reply.
    case finish
}
