import BoundedCalls
import Disk
import NBDProtocol
import PointInTime
import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles
import Upstream

/// What other threads ask a ring to do; a ticket is answered once it is done, or refused.
enum RingMessage: Sendable {
    /// Take over a connection: a new one, or one whose export lives here.
    case adopt(ConnectionSeed)
    case addListener(RingListener)
    case removeListener(number: UInt64, Ticket)
    /// A connection has gone: there is room for another.
    case resumeAccepting
    /// Whoever waits for an export that was to come soon looks again.
    case exportsCame
    /// End the oldest handshake of the scope, or of all, to make room.
    case evictHandshake(ExportScope?)
    case addDisk(LiveExport, TrackingSeed?, Ticket)
    /// Refused while a connection, a job or a request still uses the disk.
    case removeDisk(DiskID, Claim, Ticket)
    /// Stop admitting writes; report when none is in flight.
    case hold(DiskID, Ticket)
    /// The disk is held: from this instant on the job needs every cluster.
    case attachJob(BackupExport, Ticket)
    /// Let the disk's changes go on.
    case resume(DiskID)
    /// Stop copying for the job; report when nothing of it is in flight.
    case detachJob(BackupExport, Ticket)
    case breakJob(BackupExport, BreakCause)
    /// A client releases clusters; its ring is told when that is done.
    case releaseClusters(BackupExport, Range<Int>, ring: Int, request: RequestIndex)
    case clustersReleased(request: RequestIndex)
    /// A write to a job's scratch is over, given up or not.
    case scratchWritten(ScratchTicket, ScratchOutcome)
    /// Another ring has given back memory that this one may wait for.
    case copyMemoryFreed
    /// Jobs have given room back: the guest's change is tried again.
    case spaceReclaimed(piece: PieceIndex)
    /// Disconnect everyone who uses the export, after its requests in flight or at once; report
    /// when the last is gone.
    case closeConnections(ExportID, gracefully: Bool, Ticket)
    /// The disk is held: record in this layer from now on.
    case swapRecording(DiskID, RecordingLayer, Ticket)
    /// Take the swap back: the old layer gets what the new one has recorded.
    case unswapRecording(DiskID, RecordingLayer, Ticket)
    /// The layer before the last swap is durable.
    case sealedDurably(DiskID)
    case snapshotRecording(DiskID, BitmapBox, Ticket)
    case addBits(DiskID, DirtyBitmap, Ticket)
    /// A write of the write-intent log has ended.
    case intentLogWritten(DiskID, SystemFault?)
    /// The recording layer's bits are durable, or are not.
    case bitsSaved(DiskID, SystemFault?)
    /// It is said that the disk's changes are no longer recorded: its writes may go.
    case lossDeclared(DiskID)
    /// Take no mark out of the write-intent log until `resumeClearing`; refused while the log or
    /// bits are being written.
    case pauseClearing(DiskID, Ticket)
    case resumeClearing(DiskID)
    /// The disk is held: it is larger from now on.
    case growDisk(DiskID, DiskGrowth, Claim, Ticket)
    /// Whether every disk could be left to another server: a flush that failed must not be
    /// forgotten.
    case mayLeave(Ticket)
    /// Finish what the connections have asked, and close them and all that come; report when the
    /// last is gone.
    case depart(Ticket)
    /// Begin nothing by itself from now on; refused while anything is at work.
    case hush(Ticket)
    /// Go on as before `depart`.
    case stay
    /// Let go of every disk as it is, on a hushed ring.
    case leave(Ticket)
    case stop(Ticket)
    /// Something about an upstream that is at home on this ring.
    case upstream(UpstreamMessage)
    /// Another ring's upstream has answered this one.
    case upstreamAnswered(UpstreamAnswer)
}

/// What a disk's home ring needs to track its changes.
struct TrackingSeed: Sendable {
    let recording: RecordingLayer
    let log: IntentLogFile
    let doubt: TrackingDoubt
}

/// How a disk grows.
struct DiskGrowth: Sendable {
    let sizeBytes: UInt64
    /// The longer log, which marks every region, and blocks of the larger disk; nil when changes
    /// are not tracked.
    let tracking: (log: IntentLogFile, blockCount: Int)?
    /// What the ring records in from then on.
    let recording = RecordingBox()
}

/// Carries a recording layer from a ring to a call.
final class RecordingBox: Sendable {
    private let slot = Mutex<RecordingLayer?>(nil)
    func set(_ layer: RecordingLayer) { slot.withLock { $0 = layer } }
    var value: RecordingLayer? { slot.withLock { $0 } }
}

/// Carries a bitmap from a ring to a call, and from there to its readers.
final class BitmapBox: Sendable {
    private let slot = Mutex<DirtyBitmap?>(nil)
    func put(_ bitmap: DirtyBitmap) { slot.withLock { $0 = bitmap } }
    var bitmap: DirtyBitmap? { slot.withLock { $0 } }
}

/// A listening socket that one ring accepts from.
final class RingListener: Sendable {
    let number: UInt64
    let scope: ExportScope
    let security: ListenerSecurity
    let isUnix: Bool
    let port: UInt16
    /// The disk whose guest comes by it with vhost-user; nil for NBD.
    let guestOf: LiveExport?
    /// Where the socket's file lies.
    let place: StoragePlace
    private let listener: Mutex<Listener?>
    private let onClose: @Sendable () -> Void
    /// Valid while the listener is open.
    let handle: ListenerHandle

    init(
        number: UInt64, scope: ExportScope, security: ListenerSecurity, place: StoragePlace,
        listener: consuming Listener, guestOf: LiveExport? = nil,
        onClose: @escaping @Sendable () -> Void = {}
    ) {
        self.guestOf = guestOf
        self.onClose = onClose
        self.number = number
        self.place = place
        self.security = security
        self.scope = scope
        isUnix = listener.isUnix
        port = listener.port
        handle = ListenerHandle(listener.raw)
        self.listener = Mutex(listener)
    }

    /// A socket that is none of this process.
    init(
        number: UInt64, scope: ExportScope, security: ListenerSecurity, isUnix: Bool,
        handle: ListenerHandle, guestOf: LiveExport? = nil
    ) {
        self.number = number
        self.scope = scope
        self.security = security
        self.isUnix = isUnix
        self.handle = handle
        self.guestOf = guestOf
        place = .disks
        onClose = {}
        port = 0
        listener = Mutex(nil)
    }

    /// Closes the socket and removes its file; only after the ring has given it up.
    func close() {
        listener.withLock { slot in
            guard let listener = slot.take() else { return }
            onClose()
            listener.close()
        }
    }

    /// Closes the socket for this server only; the same.
    func leave() {
        listener.withLock { slot in
            guard let listener = slot.take() else { return }
            listener.closeKeepingFile()
        }
    }
}

/// A connection on its way to a ring.
struct ConnectionSeed: Sendable {
    /// Owned by the message; the ring that takes it closes it.
    let socket: SocketHandle
    let scope: ExportScope
    let isUnix: Bool
    /// The address of a TCP peer.
    let peer: PeerAddress?
    let security: ConnectionSecurity
    /// Present when the handshake is over.
    let negotiated: Negotiated?
    /// Bytes received and not parsed.
    let input: [UInt8]
    /// Bytes to be sent before anything else.
    let output: [UInt8]
}
