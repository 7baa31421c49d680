// The handshake as a machine over bytes: which message comes next, whether it has to be seen whole,
// and when the connection ends. What each option answers is in HandshakeOptions.swift.

/// What the driver of a handshake does next.
package enum HandshakeStep: Equatable, Sendable {
    /// Nothing was consumed; calling again makes sense once `input` has this many bytes in total.
    case needBytes(atLeast: Int)
    /// Send the reply, drop `consumed` bytes from the input, and call again with the rest.
    case progressed(consumed: Int)
    /// Send the reply as plaintext, then everything in both directions goes through TLS; when that
    /// is established, call `secured` and continue.
    case startTLS(consumed: Int)
    /// Send the reply; what follows the consumed bytes is the transmission phase.
    case finished(consumed: Int, Negotiated)
    /// Send the reply, which may be empty, then close.
    case close(consumed: Int, HandshakeFault)
}

/// Why a handshake ended without transmission.
package enum HandshakeFault: Error, Equatable, Sendable {
    /// The client sent ABORT; nothing is wrong.
    case clientAborted
    /// The client set a flag that was not offered.
    case unknownClientFlags(UInt32)
    /// An option does not begin with the option magic.
    case badOptionMagic(UInt64)
    /// An option announces more than `ProtocolLimits.optionSkipBytesMax`.
    case optionTooLong(code: UInt32, byteCount: UInt32)
    /// The client keeps talking without choosing an export.
    case tooManyOptions(limit: Int)
    /// Without fixed newstyle only EXPORT_NAME is legal.
    case optionNeedsFixedNewstyle(code: UInt32)
    /// EXPORT_NAME with something that is no name.
    case invalidExportName
    /// EXPORT_NAME with a name no export has; there is no error reply for it.
    case unknownExport
    /// EXPORT_NAME after EXTENDED_HEADERS, which asks for GO.
    case exportNameAfterExtendedHeaders
    /// A context that SET_META_CONTEXT had selected is gone.
    case exportChanged
    /// EXPORT_NAME without TLS where TLS is required.
    case tlsRequired
    /// Plaintext came behind STARTTLS, before it was answered: it could have been injected.
    case plaintextBehindStartTLS
    /// `advance` was called after the handshake had ended, or before TLS stood.
    case handshakeOver

    /// One line for a log: what was wrong, and with which value.
    package var text: String {
        switch self {
        case .clientAborted: "the client ended the handshake"
        case .unknownClientFlags(let flags):
            "unknown client flags 0x\(String(flags, radix: 16))"
        case .badOptionMagic(let magic):
            "option begins with 0x\(String(magic, radix: 16)) instead of IHAVEOPT"
        case .optionTooLong(let code, let byteCount):
            "option \(code) announces \(byteCount) bytes,"
                + " the limit is \(ProtocolLimits.optionSkipBytesMax)"
        case .tooManyOptions(let limit): "more than \(limit) options without choosing an export"
        case .optionNeedsFixedNewstyle(let code):
            "option \(code) from a client without fixed newstyle"
        case .invalidExportName:
            "EXPORT_NAME with a name that is not UTF-8 text of at most 4096 bytes"
        case .unknownExport: "EXPORT_NAME with a name no export has"
        case .exportNameAfterExtendedHeaders: "EXPORT_NAME after EXTENDED_HEADERS"
        case .exportChanged: "the export changed since its contexts were set"
        case .tlsRequired: "EXPORT_NAME without TLS, which is required"
        case .plaintextBehindStartTLS: "plaintext behind STARTTLS"
        case .handshakeOver: "bytes were offered to a handshake that had ended"
        }
    }
}

/// Whether a listener offers TLS; the same for all of a connection (`TLS` in the specification).
package enum TLSPolicy: Sendable, Equatable {
    /// STARTTLS is not offered (NOTLS).
    case off
    /// Both may be used; what a plaintext peer may not see needs TLS (SELECTIVETLS).
    case selective
    /// Nothing but STARTTLS and ABORT works before TLS (FORCEDTLS).
    case required
}

/// The server's side of the fixed newstyle handshake.
///
/// A value that consumes bytes and appends replies: no sockets, no clock. It keeps decoded facts
/// only, never part of a message, so any split of the byte stream gives the same replies and the
/// same end. The driver sends `greeting` first, keeps unconsumed bytes, and bounds the time. Its
/// buffer needs at most `inputBytesMax`; longer payloads are consumed as they arrive.
package struct Handshake: Sendable {
    /// The server's first bytes.
    package static var greeting: [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendBigEndian(Magic.greeting)
        bytes.appendBigEndian(Magic.option)
        let flags: HandshakeFlags = [.fixedNewstyle, .noZeroes]
        bytes.appendBigEndian(UInt16(flags.rawValue))
        return bytes
    }

    /// The most bytes that `needBytes` ever asks for.
    package static let inputBytesMax =
        ProtocolLimits.optionHeaderBytes + ProtocolLimits.optionPayloadBytesMax

    /// What to do once an unwanted payload is consumed.
    enum AfterSkip: Equatable {
        case refuse(code: UInt32, OptionRefusal)
        case acknowledgeAbort
    }

    private enum Phase: Equatable {
        case clientFlags
        case options
        case skipping(remaining: Int, then: AfterSkip)
        case startingTLS
        case over
    }

    private var phase = Phase.clientFlags
    private var clientFlags: HandshakeFlags = []
    let tls: TLSPolicy
    /// Whether TLS is established; then it is never negotiated again.
    private(set) var isSecured = false
    private var optionCount = 0
    private var optionLimit = ProtocolLimits.optionsMax

    /// How requests and replies are sent if transmission began now.
    ///
    /// STRUCTURED_REPLY and EXTENDED_HEADERS raise it, never lower it.
    var replyMode = ReplyMode.simple
    /// Whether LIST was answered; it is answered once.
    var hasListed = false
    /// What the last SET_META_CONTEXT left behind.
    var selection: ContextSelection?

    /// A handshake at its beginning: the greeting is sent, nothing is received.
    package init(tls: TLSPolicy = .off) { self.tls = tls }

    /// TLS is established: forgets what was negotiated in plaintext, except the client's flags.
    ///
    /// A peer that changed the plaintext has changed nothing (CVE-2021-3716). To be called once,
    /// after `startTLS`.
    package mutating func secured() {
        precondition(phase == .startingTLS, "TLS is up without STARTTLS")
        var fresh = Handshake(tls: tls)
        fresh.clientFlags = clientFlags
        fresh.isSecured = true
        fresh.phase = .options
        self = fresh
    }

    /// Whether nothing but STARTTLS and ABORT is answered now.
    var needsTLS: Bool { tls == .required && !isSecured }

    /// Consumes what it can of `input` and appends what is to be sent to `reply`.
    ///
    /// `input` begins with the first byte not consumed so far. After `finished` and `close` the
    /// handshake is over.
    package mutating func advance(
        _ input: Span<UInt8>, directory: borrowing some ExportDirectory & ~Copyable,
        reply: inout [UInt8]
    ) -> HandshakeStep {
        switch phase {
        case .clientFlags: readClientFlags(input)
        case .options: readOption(input, directory: directory, reply: &reply)
        case .skipping(let remaining, let then):
            skip(remaining, of: input, from: 0, then: then, reply: &reply)
        case .startingTLS, .over: .close(consumed: 0, .handshakeOver)
        }
    }

    /// Grants further options after a LIST that showed `exportCount` exports.
    mutating func raiseOptionLimit(exportCount: Int) {
        // Bounded before it is multiplied, so that no directory is too large to list.
        let listed = min(exportCount, ProtocolLimits.optionsWithListMax)
        optionLimit = min(
            optionLimit + listed * ProtocolLimits.optionsPerListedExport,
            ProtocolLimits.optionsWithListMax)
    }

    private mutating func close(consumed: Int, _ fault: HandshakeFault) -> HandshakeStep {
        phase = .over
        return .close(consumed: consumed, fault)
    }

    private mutating func readClientFlags(_ input: Span<UInt8>) -> HandshakeStep {
        guard input.count >= 4 else { return .needBytes(atLeast: 4) }
        let flags = HandshakeFlags(rawValue: input.bigEndian(UInt32.self, at: 0))
        guard flags.isSubset(of: [.fixedNewstyle, .noZeroes]) else {
            return close(consumed: 4, .unknownClientFlags(flags.rawValue))
        }
        clientFlags = flags
        phase = .options
        return .progressed(consumed: 4)
    }

    private mutating func readOption(
        _ input: Span<UInt8>, directory: borrowing some ExportDirectory & ~Copyable,
        reply: inout [UInt8]
    ) -> HandshakeStep {
        // The magic is asked for on its own, so that a peer that does not speak NBD is dropped at
        // its eighth byte however its bytes arrive.
        guard input.count >= 8 else { return .needBytes(atLeast: 8) }
        let magic = input.bigEndian(UInt64.self, at: 0)
        guard magic == Magic.option else { return close(consumed: 8, .badOptionMagic(magic)) }
        let headerBytes = ProtocolLimits.optionHeaderBytes
        guard input.count >= headerBytes else { return .needBytes(atLeast: headerBytes) }
        let code = input.bigEndian(UInt32.self, at: 8)
        let byteCount = input.bigEndian(UInt32.self, at: 12)
        if let fault = headerFault(code: code, byteCount: byteCount) {
            return close(consumed: headerBytes, fault)
        }
        // At most 32 MiB from here on, so the sum cannot overflow.
        let end = headerBytes + Int(byteCount)

        switch plan(code: code, byteCount: byteCount) {
        case .startTLS:
            guard input.count == end else {
                return close(consumed: end, .plaintextBehindStartTLS)
            }
            reply.appendAcknowledge(code: code)
            phase = .startingTLS
            return .startTLS(consumed: end)
        case .skip(let then):
            optionCount += 1
            // A SET that fails leaves no contexts selected.
            if code == OptionCode.setMetaContext.rawValue { selection = nil }
            return skip(Int(byteCount), of: input, from: headerBytes, then: then, reply: &reply)
        case .chooseByName:
            guard input.count >= end else { return .needBytes(atLeast: end) }
            let name = input.extracting(headerBytes..<end)
            return chooseByName(name, consumed: end, directory: directory, reply: &reply)
        case .answer(let option):
            guard input.count >= end else { return .needBytes(atLeast: end) }
            optionCount += 1
            let payload = input.extracting(headerBytes..<end)
            do {
                let result = try answer(
                    option, payload: payload, directory: directory, reply: &reply)
                guard let result else { return .progressed(consumed: end) }
                phase = .over
                return .finished(consumed: end, result)
            } catch {
                reply.appendRefusal(code: code, error)
                return .progressed(consumed: end)
            }
        }
    }

    /// What in an option's header ends the connection at once.
    private func headerFault(code: UInt32, byteCount: UInt32) -> HandshakeFault? {
        if optionCount >= optionLimit { return .tooManyOptions(limit: optionLimit) }
        if byteCount > ProtocolLimits.optionSkipBytesMax {
            return .optionTooLong(code: code, byteCount: byteCount)
        }
        let isExportName = code == OptionCode.exportName.rawValue
        if isExportName && replyMode == .extended { return .exportNameAfterExtendedHeaders }
        if !isExportName && !clientFlags.contains(.fixedNewstyle) {
            return .optionNeedsFixedNewstyle(code: code)
        }
        if isExportName && needsTLS { return .tlsRequired }
        if isExportName && byteCount > UInt32(ProtocolLimits.stringBytesMax) {
            return .invalidExportName
        }
        return nil
    }

    private mutating func chooseByName(
        _ name: Span<UInt8>, consumed: Int, directory: borrowing some ExportDirectory & ~Copyable,
        reply: inout [UInt8]
    ) -> HandshakeStep {
        do {
            let negotiated = try chosenExport(name, directory: directory)
            reply.appendExportName(
                negotiated.export, noZeroes: clientFlags.contains(.noZeroes))
            phase = .over
            return .finished(consumed: consumed, negotiated)
        } catch {
            return close(consumed: consumed, error)
        }
    }

    /// Consumes what is there of `remaining` unwanted bytes that begin at `offset`.
    private mutating func skip(
        _ remaining: Int, of input: Span<UInt8>, from offset: Int, then: AfterSkip,
        reply: inout [UInt8]
    ) -> HandshakeStep {
        let available = input.count - offset
        guard available >= remaining else {
            phase = .skipping(remaining: remaining - available, then: then)
            return input.isEmpty
                ? .needBytes(atLeast: 1) : .progressed(consumed: input.count)
        }
        let consumed = offset + remaining
        switch then {
        case .refuse(let code, let refusal):
            reply.appendRefusal(code: code, refusal)
            phase = .options
            return .progressed(consumed: consumed)
        case .acknowledgeAbort:
            reply.appendAcknowledge(code: OptionCode.abort.rawValue)
            return close(consumed: consumed, .clientAborted)
        }
    }
}
