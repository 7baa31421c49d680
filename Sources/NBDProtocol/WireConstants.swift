// The numbers of the NBD protocol: magics, option and reply codes, chunk types, flags, errors.
// Which of them is right at which moment is decided by `Handshake` and `RequestRules`.

/// The magic numbers that open each message.
package enum Magic {
    /// "NBDMAGIC", the first eight bytes of a greeting.
    package static let greeting: UInt64 = 0x4e42_444d_4147_4943
    /// "IHAVEOPT": second half of the greeting and start of every option.
    package static let option: UInt64 = 0x4948_4156_454f_5054
    /// Start of every reply to an option.
    package static let optionReply: UInt64 = 0x0003_e889_0455_65a9
    /// Start of a compact request.
    package static let request: UInt32 = 0x2560_9513
    /// Start of an extended request.
    package static let extendedRequest: UInt32 = 0x21e4_1c71
    /// Start of a simple reply.
    package static let simpleReply: UInt32 = 0x6744_6698
    /// Start of a structured reply chunk.
    package static let structuredChunk: UInt32 = 0x668e_33ef
    /// Start of an extended reply chunk.
    package static let extendedChunk: UInt32 = 0x6e8a_278c
}

/// Handshake flags of the greeting (server, 16 bits) and of its answer (client, 32 bits).
///
/// Both sides give the same meaning to the same bits.
package struct HandshakeFlags: OptionSet, Sendable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Unknown options are answered instead of ending the connection.
    package static let fixedNewstyle = HandshakeFlags(rawValue: 1 << 0)
    /// EXPORT_NAME is answered without the 124 zero bytes.
    package static let noZeroes = HandshakeFlags(rawValue: 1 << 1)
}

/// Options a client may send during the handshake.
package enum OptionCode: UInt32, Sendable {
    /// Chooses an export and ends the handshake; has no error reply.
    case exportName = 1
    /// Ends the connection.
    case abort = 2
    /// Asks for the names of all exports.
    case list = 3
    /// Asks to go on over TLS.
    case startTLS = 5
    /// Asks about an export.
    case info = 6
    /// Chooses an export and begins transmission.
    case go = 7
    /// Asks for replies in chunks.
    case structuredReply = 8
    /// Asks which meta contexts an export has.
    case listMetaContext = 9
    /// Selects meta contexts for an export.
    case setMetaContext = 10
    /// Asks for 64-bit lengths.
    case extendedHeaders = 11
}

/// Types of a reply to an option; errors have the top bit set.
package enum OptionReplyType: UInt32, Sendable {
    /// The option succeeded; always the last reply.
    case acknowledge = 1
    /// One export of a LIST.
    case server = 2
    /// One piece of information about an export.
    case info = 3
    /// One meta context.
    case metaContext = 4
    /// The option is unknown here.
    case unsupported = 0x8000_0001
    /// The option is malformed, or out of place.
    case invalid = 0x8000_0003
    /// The option needs TLS, which is not on.
    case tlsRequired = 0x8000_0005
    /// No export has that name.
    case unknownExport = 0x8000_0006
    /// The option is well formed but larger than this server accepts.
    case tooBig = 0x8000_0009
    /// Extended headers are on, or would have to be.
    case extendedHeadersRequired = 0x8000_000a
}

/// Kinds of information in an INFO reply.
package enum InfoType: UInt16, Sendable {
    /// Size and transmission flags.
    case export = 0
    /// The canonical name.
    case name = 1
    /// A text for people.
    case description = 2
    /// Minimum and preferred block size, maximum payload.
    case blockSize = 3
}

/// Transmission flags: what an export can do.
package struct TransmissionFlags: OptionSet, Sendable, BitwiseCopyable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// Set in every export; the handshake adds it.
    package static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    /// WRITE, TRIM and WRITE_ZEROES are refused.
    package static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    /// FLUSH is offered.
    package static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    /// The FUA flag is offered, for every command.
    package static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    /// The disk prefers sequential access.
    package static let rotational = TransmissionFlags(rawValue: 1 << 4)
    /// TRIM is offered.
    package static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    /// WRITE_ZEROES is offered, and its NO_HOLE flag.
    package static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    /// Only true when replies are chunks; the handshake decides it.
    package static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    /// FLUSH and FUA on one connection cover completed writes of all connections.
    package static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    /// RESIZE is offered; never announced, as there is no such command here.
    package static let sendResize = TransmissionFlags(rawValue: 1 << 9)
    /// CACHE is offered.
    package static let sendCache = TransmissionFlags(rawValue: 1 << 10)
    /// Needs `sendWriteZeroes`.
    package static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)
    /// BLOCK_STATUS may name the contexts it is about; only true with extended headers and a
    /// selected context, the handshake decides it.
    package static let blockStatusPayload = TransmissionFlags(rawValue: 1 << 12)
}

/// Flags of one request.
package struct CommandFlags: OptionSet, Sendable, BitwiseCopyable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The effect is durable before the reply.
    package static let fua = CommandFlags(rawValue: 1 << 0)
    /// WRITE_ZEROES: keep the range provisioned.
    package static let noHole = CommandFlags(rawValue: 1 << 1)
    /// READ: answer with at most one content chunk.
    package static let df = CommandFlags(rawValue: 1 << 2)
    /// BLOCK_STATUS: answer with exactly one extent.
    package static let reqOne = CommandFlags(rawValue: 1 << 3)
    /// WRITE_ZEROES: fail at once when zeroing is no faster than writing.
    package static let fastZero = CommandFlags(rawValue: 1 << 4)
    /// The length field counts payload bytes that follow; extended headers only.
    package static let payloadLength = CommandFlags(rawValue: 1 << 5)
}

/// Commands of the transmission phase.
package enum Command: UInt16, Sendable, BitwiseCopyable {
    /// Reads a range.
    case read = 0
    /// Writes a range; the payload follows the header.
    case write = 1
    /// Ends the connection, without a reply.
    case disconnect = 2
    /// Makes every write already replied to durable.
    case flush = 3
    /// Says that a range's content no longer matters.
    case trim = 4
    /// Says that a range will be read soon.
    case cache = 5
    /// Makes a range read as zeros.
    case writeZeroes = 6
    /// Asks for the extents of a range in each selected meta context.
    case blockStatus = 7
}

/// Error numbers on the wire, independent of the host's.
package enum WireError: UInt32, Sendable, BitwiseCopyable {
    /// Success.
    case none = 0
    /// EPERM.
    case notPermitted = 1
    /// EIO.
    case ioError = 5
    /// ENOMEM.
    case noMemory = 12
    /// EINVAL.
    case invalidArgument = 22
    /// ENOSPC.
    case noSpace = 28
    /// EOVERFLOW.
    case overflow = 75
    /// ENOTSUP.
    case notSupported = 95
    /// ESHUTDOWN.
    case shutdown = 108
}

/// Types of a reply chunk; errors have the top bit set.
package enum ChunkType: UInt16, Sendable {
    /// Ends a reply that has nothing more to say.
    case none = 0
    /// A place in the export and the data there.
    case offsetData = 1
    /// A place in the export and how many zeros are there.
    case offsetHole = 2
    /// A meta context's id and its extents.
    case blockStatus = 5
    /// The same with 64-bit lengths and flags; extended headers only.
    case blockStatusExtended = 6
    /// An error with a text.
    case error = 0x8001
    /// An error with a text and the place where it happened.
    case errorAtOffset = 0x8002
}

/// How requests are sent and answered on one connection.
///
/// Chosen during the handshake and fixed from then on.
package enum ReplyMode: Sendable, Equatable, BitwiseCopyable, CaseIterable {
    /// Compact requests; a 16-byte header, then the data of a READ.
    case simple
    /// Compact requests; chunks, the last of which carries DONE.
    case structured
    /// Requests with 64-bit lengths; every reply is chunks, with 64-bit lengths as well.
    case extended

    /// Whether a reply may be several chunks, and errors come with a text.
    package var usesChunks: Bool { self != .simple }
}
