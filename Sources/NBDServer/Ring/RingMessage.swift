import Bitmap
import Disk
import IORing
import NBDProtocol
import Scratch
import Synchronization

/// What other threads ask a ring to do.
enum RingMessage: Sendable {
    /// Take over a connection: a new one, or one whose export lives here.
    case adopt(ConnectionSeed)
    case addListener(RingListener)
    case removeListener(number: UInt64, Latch)
    /// A connection has gone: there is room for another.
    case resumeAccepting
    /// End the oldest handshake of the scope, or of all, to make room.
    case evictHandshake(ExportScope?)
    case addDisk(LiveExport, TrackingSeed?, Latch)
    /// Refused while a connection, a job or a request still uses the disk.
    case removeDisk(DiskID, Outcome, Latch)
    /// Stop admitting writes; report when none is in flight.
    case hold(DiskID, Latch)
    /// The disk is held: from this instant on the job needs every cluster.
    case attachJob(BackupExport, Outcome, Latch)
    case release(DiskID)
    /// Stop copying for the job; report when nothing of it is in flight.
    case detachJob(BackupExport, Latch)
    case breakJob(BackupExport, BreakCause)
    /// A guest has come: lend no more pages of the disk, and say when those on loan are taken.
    case recallLoans(DiskID)
    /// To the home ring: nothing of the disk is on loan, and a guest may wait for that.
    case loansSettled(DiskID)
    /// The guest has waited long enough: clients of broken jobs that have pages on loan are hung up
    /// on.
    case abandonLoans(DiskID)
    /// A client has let go of clusters; its ring is told when they are released.
    case releaseClusters(BackupExport, Range<Int>, ring: Int, request: Int)
    case clustersReleased(request: Int)
    /// Disconnect everyone who uses the export, after its requests in flight or at once; report when
    /// the last is gone.
    case closeConnections(ExportID, gracefully: Bool, Latch)
    /// The disk is held: record in this layer from now on.
    case swapRecording(DiskID, RecordingLayer, Latch)
    /// Take the swap back: the old layer gets what the new one has recorded.
    case unswapRecording(DiskID, RecordingLayer, Latch)
    /// The layer before the last swap is durable.
    case sealedDurably(DiskID)
    case snapshotRecording(DiskID, BitmapBox, Latch)
    case addBits(DiskID, DirtyBitmap, Latch)
    /// The disk is held: it is larger from now on.
    case growDisk(DiskID, DiskGrowth, Outcome, Latch)
    case stop(Latch)
}

/// Whether a ring could do what it was asked.
final class Outcome: Sendable {
    let succeeded = Atomic<Bool>(false)
    /// It could not because the ring has no memory for more copies.
    let lackedBuffers = Atomic<Bool>(false)
}

/// What a disk's home ring needs to track its changes.
struct TrackingSeed: Sendable {
    let recording: RecordingLayer
    let log: IntentLogFile
    let directory: String
}

/// How a disk grows.
struct DiskGrowth: Sendable {
    let sizeBytes: UInt64
    /// The wider layer and the longer log, which marks every region; nil when changes are not
    /// tracked.
    let tracking: TrackingSeed?
    /// Of the layer: see `TrackingStore.Growth`.
    let aheadBlocks: Int
    let aheadStart: UInt64
}

/// Carries a bitmap from a ring to the control thread, and from there to its readers.
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
    private let listener: Mutex<Listener?>
    /// Valid while the listener is open.
    let raw: Int32

    init(
        number: UInt64, scope: ExportScope, security: ListenerSecurity,
        listener: consuming Listener
    ) {
        self.number = number
        self.security = security
        self.scope = scope
        isUnix = listener.isUnix
        port = listener.port
        raw = listener.raw
        self.listener = Mutex(listener)
    }

    /// Closes the socket and removes its file; only after the ring has let go of it.
    func close() {
        listener.withLock { slot in
            guard let listener = slot.take() else { return }
            listener.close()
        }
    }
}

/// A connection on its way to a ring.
struct ConnectionSeed: Sendable {
    /// Owned by the message; the ring that takes it closes it.
    let descriptor: Int32
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
