import ServerInterface
import SystemLayer

/// The phase of a connection.
enum ConnectionPhase {
    case handshake
    /// TLS is being agreed upon; then the handshake goes on.
    case securing
    case transmission
    /// A front-end of vhost-user, from its first byte on.
    case sharing
    /// No further requests are read; replies still go out, then it closes.
    case draining
    /// The socket is shut down; the slot is freed when the kernel holds nothing of it any more.
    case closing

    /// Whether no export has been chosen yet.
    var isBeforeTransmission: Bool { self == .handshake || self == .securing }
}

/// One connection, owned by one ring.
struct Connection: ~Copyable {
    let socket: SocketHandle
    let scope: ExportScope
    let isUnix: Bool
    let peer: PeerAddress?
    let localPeer: LocalPeer?
    /// What the peer may use, as far as it is known.
    var rights: AccessRights
    /// Counted among those that have not chosen an export.
    var isInHandshakeCount: Bool
    private(set) var phase = ConnectionPhase.handshake
    /// When the connection is closed unless it has come to its next phase, in nanoseconds; nil: it
    /// may take its time.
    private(set) var phaseEnd: UInt64?
    let begunAt: UInt64
    /// When the peer last sent or took a byte, in nanoseconds.
    var lastProgress: UInt64
    var isInReadyList = false

    var inbox: Inbox
    var outbox = Outbox()
    /// Between the socket on one side, inbox and outbox on the other; nil without TLS.
    var tls: SecureChannel?
    /// Whether there is one: to ask for it would copy it.
    var isSecured = false
    let tlsMode: ListenerSecurity
    var negotiation: Negotiation
    var transmission = Transmission()
    /// What a front-end of vhost-user has shared; nil over NBD.
    var vhost: VhostIndex?

    /// `input`: arena offset of the inbox's buffer.
    init(_ seed: ConnectionSeed, input: Int, now: UInt64) {
        tlsMode = seed.security.mode
        localPeer = seed.security.localPeer
        rights = seed.security.rights
        negotiation = Negotiation(tls: seed.security.mode.policy)
        socket = seed.socket
        scope = seed.scope
        isUnix = seed.isUnix
        peer = seed.peer
        isInHandshakeCount = seed.negotiated == nil
        lastProgress = now
        begunAt = now
        inbox = Inbox(buffer: input)
        phaseEnd = now + Limits.handshakeNanoseconds
    }

    /// Comes to a phase that has to be over by `end`; nil: it may take its time.
    mutating func enter(_ phase: ConnectionPhase, until end: UInt64?) {
        self.phase = phase
        phaseEnd = end
    }

    /// Whether the kernel or a request still refers to the connection.
    var isReferenced: Bool {
        inbox.isReceiving || outbox.waitsForWritable || transmission.requestCount > 0
    }
}
