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
    /// Arena offset of the buffer that sealed replies leave from, or -1.
    var output = -1
    /// Bytes not yet sent, counted from the buffer's start.
    var outputStart = 0
    var outputEnd = 0

    var hasUnsent: Bool { outputStart < outputEnd || session.hasOutbox }
}

/// What a connection brings along when it comes to a ring.
struct ConnectionSecurity: Sendable {
    let mode: ListenerSecurity
    /// Present on unix sockets.
    let localPeer: LocalPeer?
    let rights: AccessRights
    /// Present when TLS stands.
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
