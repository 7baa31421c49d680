import PointInTime
import Tables

/// What a completion belongs to.
enum Operation {
    case mailbox
    case clock
    case accept(listener: UInt64)
    case receive(ConnectionIndex)
    case writable(ConnectionIndex)
    case piece(PieceIndex)
    case copyRead(DiskIndex, CopyIndex)
    /// A front-end's socket has a message.
    case message(VhostIndex)
    /// A guest's queue was kicked.
    case kick(VhostIndex, queue: Int)
    /// Nobody waits for the result (a prefetch, a cancel).
    case ignored

    private enum Kind: UInt8 {
        case mailbox = 1
        case clock, accept, receive, writable, piece, copyRead, message, kick, ignored
    }

    /// The 64 bits that travel with the operation through the kernel: its kind, and what it is for.
    var tag: UInt64 {
        switch self {
        case .mailbox: Self.tag(.mailbox)
        case .clock: Self.tag(.clock)
        case .accept(let listener): Self.tag(.accept, Int(listener))
        case .receive(let connection): Self.tag(.receive, connection.number)
        case .writable(let connection): Self.tag(.writable, connection.number)
        case .piece(let piece): Self.tag(.piece, piece.number)
        case .copyRead(let disk, let copy): Self.tag(.copyRead, disk.number, copy.number)
        case .message(let vhost): Self.tag(.message, vhost.number)
        case .kick(let vhost, let queue): Self.tag(.kick, vhost.number, queue)
        case .ignored: Self.tag(.ignored)
        }
    }

    private static func tag(_ kind: Kind, _ number: Int = 0, _ detail: Int = 0) -> UInt64 {
        UInt64(kind.rawValue) << 56 | UInt64(detail) << 32 | UInt64(number)
    }

    init(tag: UInt64) {
        guard let kind = Kind(rawValue: UInt8(tag >> 56)) else {
            preconditionFailure("a completion that was never submitted")
        }
        let number = Int(tag & 0xFFFF_FFFF)
        self =
            switch kind {
            case .mailbox: .mailbox
            case .clock: .clock
            case .accept: .accept(listener: UInt64(number))
            case .receive: .receive(ConnectionIndex(number))
            case .writable: .writable(ConnectionIndex(number))
            case .piece: .piece(PieceIndex(number))
            case .copyRead: .copyRead(DiskIndex(number), CopyIndex(Int(tag >> 32 & 0xFF_FFFF)))
            case .message: .message(VhostIndex(number))
            case .kick: .kick(VhostIndex(number), queue: Int(tag >> 32 & 0xFF_FFFF))
            case .ignored: .ignored
            }
    }
}
