import NBDProtocol
import ServerInterface
import TLS

/// TLS of one connection, and the buffers on its outer side.
struct SecureChannel {
    let session: TLSSession
    /// Arena offset of the buffer that the socket's bytes are received into.
    let input: Int
    /// Bytes not yet opened, counted from the buffer's start.
    var inputStart = 0
    var inputEnd = 0
    /// What sealed replies leave from, while there are some.
    var output: SealedOutput?

    /// Arena range of what is not yet opened.
    var received: Range<Int> { (input + inputStart)..<(input + inputEnd) }
}

/// Sealed replies that have not been sent.
struct SealedOutput {
    /// Arena offset of the buffer, `Limits.sealedOutputBytes` long.
    let buffer: Int
    /// Bytes not yet sent, counted from the buffer's start.
    var start = 0
    var end = 0

    var isSent: Bool { start == end }
    /// Arena range that more can be sealed into.
    var free: Range<Int> { (buffer + end)..<(buffer + Limits.sealedOutputBytes) }
}

/// What a connection brings along when it comes to a ring.
struct ConnectionSecurity: Sendable {
    let mode: ListenerSecurity
    /// Present on unix sockets.
    let localPeer: LocalPeer?
    let rights: AccessRights
    /// Present once TLS is up.
    var session: TLSSession?
    /// Bytes received and not opened.
    var sealed: [UInt8] = []
}

extension ListenerSecurity {
    var policy: TLSPolicy {
        switch self {
        case .plaintext: .off
        case .selective: .selective
        case .required: .required
        }
    }
}
