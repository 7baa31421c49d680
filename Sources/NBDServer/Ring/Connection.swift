import NBDProtocol
import PointInTime
import ServerInterface
import System

/// Plain facts of what a connection reads, copied here so that the data path touches no shared
/// object.
///
/// The objects behind the handles are kept alive by the connection's `target`.
struct ReadPath {
    var source: FileHandle
    /// 1 through the page cache, else what O_DIRECT needs.
    var alignment: Int
    var sourceNeverWaits: Bool
    /// Where the source ends, in bytes: a read with O_DIRECT ends there, too, whatever its alignment.
    var sizeBytes: UInt64 = 0
    /// What was not in the page cache does not stay there: a backup is read once.
    var dropsBehind = false
    /// Present on backup exports.
    var ledger: LedgerView?
    var scratch = FileHandle.none
    var scratchNeverWaits = false
    /// Asked after each read of scratch whether what was written there is still there; nil where
    /// nothing can be lost.
    var scratchWitness: FileHandle?
    /// Pages of the source may be handed to this peer without a copy.
    var sourceByReference = false
    /// Pages of the scratch may.
    var scratchByReference = false

    var isDirect: Bool { alignment > 1 }
    var sendsByReference: Bool { sourceByReference || scratchByReference }
}

/// Where a connection stands.
enum ConnectionPhase {
    case handshake
    /// TLS is being agreed upon; then the handshake goes on.
    case securing
    case transmission
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
    /// Counted among those that have not chosen an export.
    var isInHandshakeCount: Bool
    var phase = ConnectionPhase.handshake
    /// The handshake must be over, or a draining connection drained, by then, in nanoseconds.
    var deadline: UInt64
    let begunAt: UInt64
    /// When the peer last sent or took a byte, in nanoseconds.
    var lastProgress: UInt64

    // Receiving
    /// Arena offset of the input buffer.
    let input: Int
    /// Unparsed bytes, counted from the buffer's start.
    var inputStart = 0
    var inputEnd = 0
    var isReceiving = false
    /// The piece whose payload is being received straight into its buffer.
    var receivingPiece: PieceIndex?
    var sawEnd = false

    // TLS, between the socket on one side, parser and replies on the other
    let tlsMode: ListenerSecurity
    let localPeer: LocalPeer?
    /// What the peer may use, as far as it is known.
    var rights: AccessRights
    var tls: SecureChannel?
    /// Whether there is a channel: all that plaintext looks at.
    var isSecured = false
    /// STARTTLS is granted, but its reply has not left yet.
    var startsTLS = false

    // Negotiation
    var handshake: Handshake
    /// What was agreed, while the connection cannot move to its home ring because a reply is still
    /// being sent.
    var agreed: Negotiated?

    // Transmission
    var target: ExportTarget?
    var reader: RequestReader?
    var replies = ReplyEncoder(.simple)
    var contexts: [SelectedContext] = []
    var path = ReadPath(source: .none, alignment: 1, sourceNeverWaits: false)
    /// Slot of the home disk when the connection may write.
    var disk: DiskIndex?
    var requestCount = 0
    /// The request that is still being cut into pieces; no other is parsed before.
    var current: RequestIndex?
    var status = StatusProgress()
    /// Where the path drops behind.
    var coldWindows: ColdWindows?
    /// Bytes read that the job's figure does not have yet.
    var unreportedBytes: UInt64 = 0
    /// Pages of the arena held by requests and replies.
    var bufferPages = 0

    // Sending
    var output = OutputQueue()
    var waitsForWritable = false
    var isInReadyList = false
    /// The last turn stopped for want of room; sending gives some back.
    var isBlocked = false

    init(_ seed: ConnectionSeed, input: Int, now: UInt64) {
        tlsMode = seed.security.mode
        localPeer = seed.security.localPeer
        rights = seed.security.rights
        handshake = Handshake(tls: seed.security.mode.policy)
        socket = seed.socket
        scope = seed.scope
        isUnix = seed.isUnix
        peer = seed.peer
        isInHandshakeCount = seed.negotiated == nil
        lastProgress = now
        begunAt = now
        self.input = input
        deadline = now + Limits.handshakeNanoseconds
    }

    /// Whether a reply, or part of one, has not been taken by the socket.
    var hasUnsent: Bool { !output.isEmpty || (isSecured && tls?.hasUnsent == true) }

    /// Whether the kernel or a request still refers to the connection.
    var isReferenced: Bool { isReceiving || waitsForWritable || requestCount > 0 }
}

/// One run of the arena that waits to be sent, and the pages of a file that follow it.
struct OutputSegment {
    /// Next byte to send.
    var start: Int
    var end: Int
    /// Pages of a file, and the bytes of them not yet taken by the socket.
    var filePages: PageRun?
    var filePageBytes = 0
    /// The allocation that holds it.
    let buffer: Int
    let pages: Int
    /// Further small replies may be added at the end.
    var isOpen: Bool

    /// Bytes not yet taken by the socket.
    var unsentBytes: Int { end - start + filePageBytes }

    /// Notes that the socket took bytes of it, but not all.
    mutating func advance(_ bytes: Int) {
        let inMemory = min(bytes, end - start)
        start += inMemory
        filePageBytes -= bytes - inMemory
    }
}

/// Replies in the order in which they leave; room for all that limits allow, allocated once.
struct OutputQueue {
    static let capacity = 512
    private var segments: [OutputSegment] = []
    private var head = 0
    private(set) var count = 0
    /// Bytes not yet taken by the socket.
    private(set) var unsentBytes = 0

    var isEmpty: Bool { count == 0 }

    private func index(_ position: Int) -> Int { (head + position) & (Self.capacity - 1) }

    subscript(_ position: Int) -> OutputSegment {
        get { segments[index(position)] }
        set { segments[index(position)] = newValue }
    }

    var last: OutputSegment? { count == 0 ? nil : segments[index(count - 1)] }

    mutating func append(_ segment: OutputSegment) {
        if segments.isEmpty {
            let empty = OutputSegment(start: 0, end: 0, buffer: 0, pages: 0, isOpen: false)
            segments = [OutputSegment](repeating: empty, count: Self.capacity)
        }
        precondition(count < Self.capacity, "limits allow no more replies than this")
        segments[index(count)] = segment
        count += 1
        unsentBytes += segment.unsentBytes
    }

    /// Adds bytes at the end of the last segment, which is open and has room.
    mutating func extendLast(by bytes: Int) {
        segments[index(count - 1)].end += bytes
        unsentBytes += bytes
    }

    /// Notes that the socket took bytes of the first segment, but not all.
    mutating func advance(_ bytes: Int) {
        segments[head].advance(bytes)
        unsentBytes -= bytes
    }

    mutating func removeFirst() -> OutputSegment {
        let segment = segments[head]
        unsentBytes -= segment.unsentBytes
        head = (head + 1) & (Self.capacity - 1)
        count -= 1
        return segment
    }
}
