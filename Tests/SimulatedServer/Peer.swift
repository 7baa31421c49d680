import NBDProtocol
import Simulation
import WireClient

/// A connected socket: what each side has sent and the other not yet taken.
final class SimulatedSocket {
    static let roomBytes = 96 << 10

    let handle: SocketHandle
    /// Towards the server.
    var input: [UInt8] = []
    /// Towards the peer.
    var output: [UInt8] = []
    /// The same of a front-end: messages with what comes along.
    var messages: [SharedMessage] = []
    var answers: [SharedMessage] = []
    var isAccepted = false
    var isClosedByPeer = false
    var isShut = false
    var isClosed = false

    init(_ number: Int32) { handle = SocketHandle(number) }

    /// Nothing more comes from the peer.
    var isAtEnd: Bool { isShut || isClosed || isClosedByPeer }
    var isEndedByServer: Bool { isShut || isClosed }
}

/// What a peer has asked for and waits for.
struct PeerRequest {
    let command: UInt16
    let bytes: Range<UInt64>
    let stamp: Stamp
    let isDurable: Bool
    /// How much of the disk's log there was, and the range's sectors then.
    var logStart = 0
    var before: [Stamp] = []
    var versionsBefore: [UInt32] = []
    /// Versions that had been answered when it was sent.
    var answeredBefore: [UInt32] = []
    /// Its disk failed while a server was there that has gone since.
    var mayFail = false
    /// No such request may succeed.
    var isAbsurd = false
}

/// A guest of a disk, or a client of a job: it speaks bytes.
final class Peer {
    enum Manner: CaseIterable { case brisk, byteByByte, deaf, hostile }

    let socket: SimulatedSocket
    let disk: ServedDisk
    /// Nil: a guest.
    let part: JobPart?
    let job: ServedJob?
    let manner: Manner
    var handshake: WireHandshake
    var transmission: WireTransmission?
    var unsent: [UInt8] = []
    var requests: [UInt64: PeerRequest] = [:]
    var lastCookie: UInt64 = 0
    /// It has said something that no server can make sense of.
    var hasRaved = false

    init(
        _ socket: SimulatedSocket, _ disk: ServedDisk, _ part: JobPart?, _ job: ServedJob?,
        _ manner: Manner, _ mode: WireMode
    ) {
        self.socket = socket
        self.disk = disk
        self.part = part
        self.job = job
        self.manner = manner
        var contexts = ["base:allocation"]
        if part?.dirty != nil { contexts.append("qemu:dirty-bitmap:disk\(disk.number)") }
        handshake = WireHandshake(
            export: "disk\(disk.number)", mode: mode, contexts: mode == .simple ? [] : contexts)
    }

    var isGuest: Bool { part == nil }
    var name: String { "\(isGuest ? "guest" : "client") \(socket.handle.number)" }

    /// Requests in the order in which they were sent.
    var pending: [PeerRequest] { requests.sorted { $0.key < $1.key }.map(\.value) }
}
