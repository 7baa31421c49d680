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
    /// Start of a simple reply.
    package static let simpleReply: UInt32 = 0x6744_6698
    /// Start of a structured reply chunk.
    package static let structuredChunk: UInt32 = 0x668e_33ef
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
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
    case extendedHeaders = 11
}

/// Types of a reply to an option; errors have the top bit set.
package enum OptionReplyType: UInt32, Sendable {
    case acknowledge = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case unsupported = 0x8000_0001
    case policy = 0x8000_0002
    case invalid = 0x8000_0003
    case unknownExport = 0x8000_0006
    case tooBig = 0x8000_0009
}

/// Kinds of information in an INFO reply.
package enum InfoType: UInt16, Sendable {
    case export = 0
    case name = 1
    case description = 2
    case blockSize = 3
}

/// Transmission flags: what an export can do.
package struct TransmissionFlags: OptionSet, Sendable, BitwiseCopyable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// Set in every export; the handshake adds it.
    package static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    package static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    package static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    package static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    package static let rotational = TransmissionFlags(rawValue: 1 << 4)
    package static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    package static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    /// Only true with structured replies; the handshake decides it.
    package static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    /// FLUSH and FUA on one connection cover completed writes of all connections.
    package static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    package static let sendResize = TransmissionFlags(rawValue: 1 << 9)
    package static let sendCache = TransmissionFlags(rawValue: 1 << 10)
    /// Needs `sendWriteZeroes`.
    package static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)
    /// Only true with extended headers.
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
    /// The length field counts payload bytes; extended headers only.
    package static let payloadLength = CommandFlags(rawValue: 1 << 5)
}

/// Commands of the transmission phase.
package enum Command: UInt16, Sendable, BitwiseCopyable {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case cache = 5
    case writeZeroes = 6
    case blockStatus = 7
}

/// Error numbers as they stand on the wire, whatever the host calls them.
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

/// Types of a structured reply chunk; errors have the top bit set.
package enum ChunkType: UInt16, Sendable {
    case none = 0
    case offsetData = 1
    case offsetHole = 2
    case blockStatus = 5
    case error = 0x8001
    case errorAtOffset = 0x8002
}

/// How the server answers requests on one connection.
///
/// Chosen during the handshake and fixed from then on.
package enum ReplyMode: Sendable, Equatable {
    /// A 16-byte header, then the data of a READ.
    case simple
    /// Chunks, the last of which carries DONE.
    case structured
}
