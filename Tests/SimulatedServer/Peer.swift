import NBDProtocol
import Simulation
import WireClient

@testable import NBDServer

/// A connected socket: what each side has sent and the other not yet taken.
final class SimulatedSocket {
    static let roomBytes = 96 << 10

    let handle: SocketHandle
    /// Towards the server.
    var input: [UInt8] = []
    /// Towards the peer.
    var output: [UInt8] = []
    var isClosedByPeer = false
    var isShut = false
    var isClosed = false

    init(_ number: Int32) { handle = SocketHandle(number) }

    /// Nothing more comes from the peer.
    var isAtEnd: Bool { isShut || isClosed || isClosedByPeer }
}

/// What a peer has asked for and waits for.
struct PeerRequest {
    let command: UInt16
    let bytes: Range<UInt64>
    let stamp: Stamp
    let isDurable: Bool
    var answeredBefore: [UInt32] = []
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
    var isGone = false

    init(
        _ socket: SimulatedSocket, _ disk: ServedDisk, _ part: JobPart?, _ job: ServedJob?,
        _ manner: Manner, _ mode: WireMode
    ) {
        self.socket = socket
        self.disk = disk
        self.part = part
        self.job = job
        self.manner = manner
        handshake = WireHandshake(
            export: "disk\(disk.number)", mode: mode,
            contexts: mode == .simple ? [] : ["base:allocation"])
    }

    var isGuest: Bool { part == nil }
}
