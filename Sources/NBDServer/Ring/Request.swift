import Core
import NBDProtocol

/// A request that has been accepted and not yet answered.
struct Request {
    let connection: ConnectionIndex
    /// The home disk, when the connection may write.
    let disk: DiskIndex?
    let valid: ValidRequest
    /// Bytes handed to pieces so far, from the request's offset.
    var issued: UInt64 = 0
    var piecesInFlight = 0
    /// The first failure, kept until the reply.
    var failure: RequestFailure?
    /// A reply that may not be cut (simple, DF) and is too long for one buffer: it has the
    /// connection to itself while it is sent piece by piece behind one header.
    var isExclusive = false
    var headerSent = false
    /// Of zeroing and discarding: how far it has come.
    var zeroing: Zeroing?
    /// Where the answer goes when it came by a queue and not by NBD.
    let guest: GuestRequestIndex?

    init(
        connection: ConnectionIndex, disk: DiskIndex?, valid: ValidRequest,
        guest: GuestRequestIndex? = nil
    ) {
        self.guest = guest
        self.connection = connection
        self.disk = disk
        self.valid = valid
    }

    var end: UInt64 { valid.offset + valid.length }
    /// The disk of a request that changes it or makes it durable.
    var homeDisk: DiskIndex {
        guard let disk else { preconditionFailure("nobody changes a disk that is read-only") }
        return disk
    }
}

/// Why a request cannot be answered with success.
struct RequestFailure {
    let error: WireError
    /// For clients whose replies are chunks.
    let text: String
    /// Where it happened, in bytes of the disk.
    let offset: UInt64
}

/// What one operation of a request does.
enum PieceKind {
    case read
    case write
    /// The middle of a zeroing request.
    case zero
    case discard
    case sync
    case prefetch
    /// A question to an upstream, what lies in a range.
    case status
    /// A read into a guest's memory.
    case guestRead

    /// What may keep the file's lock while it is under way.
    var changesDisk: Bool { self == .write || self == .zero || self == .discard }
}

/// Which end of an unaligned write is being read, so that the bytes around the guest's are kept.
enum PieceEdge {
    case head, tail
}

/// One operation of a request: at most `Limits.pieceBytes` of data, or a range to zero.
struct Piece {
    let request: RequestIndex
    let kind: PieceKind
    var edge: PieceEdge?
    /// A read: where it goes on, and what is good of it.
    var read: PointInTimeRead
    /// The guest's range.
    let offset: UInt64
    let count: UInt64
    /// The same range widened to the source's alignment.
    var ioOffset: UInt64 = 0
    var ioCount = 0
    /// Arena offset at which `ioOffset` lies; the page before it takes the reply's header.
    var data = 0
    /// Where the data lies; nil for what has none.
    var buffer: ArenaRun?
    /// The ranges of a guest's memory that are read into, or written straight from; nil over NBD.
    var lane: Int32?
    /// Bytes of a write that are received, then those of the widened range that are written; of a
    /// sync how often it was interrupted.
    var progress = 0
    /// The home disk, when the connection may write.
    let disk: DiskIndex?
    /// Zeroing that must not give space back, and how it was submitted.
    var keepsSpace = false
    var usesZeroRange = false
    /// When it was last handed to the kernel, in nanoseconds; 0 while it is not there.
    var handedOverAt: UInt64 = 0
    /// While it hangs it may keep one of the kernel's workers.
    var keepsWorker = true
    /// Since when a change waits that came upon a copy, in nanoseconds; 0: it has not.
    var copyWaitSince: UInt64 = 0
    /// How often it found its file system full and was tried again.
    var roomAttempts: UInt8 = 0
    /// Nothing but holes is made holes again.
    var changesNothing = false

    init(
        request: RequestIndex, disk: DiskIndex?, kind: PieceKind, offset: UInt64, count: UInt64
    ) {
        self.request = request
        self.disk = disk
        self.kind = kind
        self.offset = offset
        self.count = count
        read = PointInTimeRead(offset..<(offset + count))
    }

    /// The disk of what changes it or makes it durable.
    var homeDisk: DiskIndex {
        guard let disk else { preconditionFailure("nobody changes a disk that is read-only") }
        return disk
    }
    /// The buffer of a piece that has data.
    var ownBuffer: ArenaRun {
        guard let buffer else { preconditionFailure("reads and writes have a buffer") }
        return buffer
    }
    /// Arena offset of the page in front of the data.
    var margin: Int { ownBuffer.offset }
    /// Arena offset of the guest's first byte.
    var guestData: Int { data + Int(offset - ioOffset) }
    /// Arena offset of the byte at which a read goes on.
    var readTarget: Int { data + Int(read.position - ioOffset) }
    var end: UInt64 { offset + count }
    var isWidened: Bool { ioCount != Int(count) }

    /// What the disk's gates are told of it: a change under its own index.
    func change(_ index: PieceIndex, isStep: Bool) -> Change {
        Change(
            index.change, bytes: offset..<end,
            blocks: ioOffset..<max(ioOffset + UInt64(ioCount), end),
            changesNothing: changesNothing, isStep: isStep)
    }
}
