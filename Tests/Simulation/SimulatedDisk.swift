import Core
import PointInTime
import Tracking
import TrackingFiles

/// A guest's request, from its arrival to its answer.
final class GuestRequest {
    enum Kind: Hashable { case write, zero, discard, flush }

    let number: Int
    let kind: Kind
    let bytes: Range<UInt64>
    /// What it writes; zeroing writes 0.
    let stamp: Stamp
    /// The answer waits until the change is durable.
    let isDurable: Bool
    let startedAt: UInt64
    /// The change that it is, or its present step is.
    var change: Change?
    var zeroing = Zeroing(0..<0, isDiscard: false, cut: .max)
    var isAtWork = false
    /// The present change is a write, not a step over whole pages.
    var stepWrites = true
    /// A driver that breaks a rule has called its change finished.
    var isFinishedEarly = false
    /// A driver that breaks a rule has given its place up.
    var hasNoPlace = false
    /// Its disk has failed it, so it may be answered with an error.
    var mayFail = false
    var errno: Int32?
    /// Sectors that it has written, with their versions then.
    var written: [(index: Int, version: UInt32)] = []
    /// Versions of all sectors that had been answered when a flush came.
    var answeredBefore: [UInt32] = []

    init(
        _ number: Int, _ kind: Kind, _ bytes: Range<UInt64>, stamp: Stamp, isDurable: Bool,
        now: UInt64
    ) {
        self.number = number
        self.kind = kind
        self.bytes = bytes
        self.stamp = stamp
        self.isDurable = isDurable
        startedAt = now
    }
}

/// What the world knows of a checkpoint that a user was told of.
struct CheckpointModel {
    let name: String
    /// The disk at its instant.
    var content: [Stamp]
    /// Blocks that were changed since.
    var changed: Set<Int> = []
    /// Blocks that a request touched since, whether it changed them or not.
    var touched: Set<Int> = []
    /// Nothing has happened that lets an answer name more than was touched.
    var isExact = true
    /// A user was told that it is there.
    var isKnown = false
    /// A loss of tracking could not be said anywhere before the crash: the documentation says so.
    var isUnprovable = false
}

/// One disk: its storage, which outlives processes, and what the server has of it.
final class SimulatedDisk {
    static let changeLimit = 12
    static let blockShift: UInt64 = 16

    let number: Int
    unowned let world: World
    let source: SimulatedSource
    let files = FileTable()
    let memory = FileTable()
    var markText: String?
    /// Blocks in which changes may meet; 1 sector: they cannot.
    let blockBytes: UInt64
    var checkpoints: [CheckpointModel] = []
    /// Sectors' versions whose writes were answered.
    var answered: [UInt32]
    /// That changes were not recorded was said in memory alone: a loss of power forgets it.
    var isOnlyInMemory = false
    /// An I/O of the source has gone wrong since the process began.
    var hasFailed = false
    /// What tells of the session has gone wrong since the process began: the next one may have to
    /// believe the log.
    var evidenceHasFailed = false

    // MARK: The process

    var isServed = false
    var changes: DiskChanges
    var requests: [GuestRequest?]
    var jobs: [JobDisk?] = []
    var buffers: [[Stamp]] = []
    var scratchWrites: [ScratchWriteInFlight] = []
    var isPerforming = false
    var holdReply: (() -> Void)?
    /// A call has the disk for itself.
    var isOwned = false

    var tracking = Tracking.none
    var doubt: TrackingDoubt?
    /// Where changes are recorded now; nil: they are not.
    var recording: RecordingLayer?
    var intentLog: IntentLogFile?
    var isClearingHeld = false
    var logDeadline = UInt64.max
    var lossDeadline = UInt64.max
    var ticks = 0
    /// Layers that threads or calls are saving: whoever else wants to waits.
    var savingLayers: Set<UInt64> = []
    /// Whether somebody saves the layer that records.
    var isSaving: Bool { recording.map { isSaving($0) } ?? false }

    func isSaving(_ layer: RecordingLayer) -> Bool { savingLayers.contains(layer.serial) }

    var retriesDoubt = false
    /// A guest's sync has failed: no later one is believed.
    var hasFailedSync = false
    /// Failed write-backs of the source that were noticed.
    var seenLost = 0
    /// When changes that an instant held went on.
    var lastRelease: UInt64 = 0
    /// That changes are not recorded is about to be said.
    var isLossUnderWay = false
    /// It was said in memory that changes are not recorded.
    var isSaidInMemory = false
    /// Changes were made that nothing records.
    var hasUnrecorded = false
    /// Users were told that this could not be said durably.
    var wasTold = false

    /// The disk's tracking as calls know it.
    enum Tracking {
        case none
        case store(TrackingStore)
        case unavailable
    }

    init(_ number: Int, _ world: World) {
        self.number = number
        self.world = world
        blockBytes = world.swarm.hasBlocks ? 4096 : DiskShape.sectorBytes
        source = SimulatedSource(
            DiskShape(
                regions: world.swarm.regions,
                tailBytes: number % 2 == 0 ? UInt64(ClusterGeometry.clusterBytes) : 8192))
        answered = source.versions
        changes = Self.changes(world)
        requests = [GuestRequest?](repeating: nil, count: Self.changeLimit)
        forgetProcess()
    }

    private static func changes(_ world: World) -> DiskChanges {
        DiskChanges(
            changeLimit: changeLimit, hasBlocks: world.swarm.hasBlocks, zeroingLimit: 2)
    }

    /// The process is gone.
    func forgetProcess() {
        isServed = false
        changes = Self.changes(world)
        requests = [GuestRequest?](repeating: nil, count: Self.changeLimit)
        jobs = [JobDisk?](repeating: nil, count: CopyBeforeWrite.jobsMax)
        buffers = [[Stamp]](repeating: [], count: CopyBeforeWrite.copiesMax)
        scratchWrites = []
        isPerforming = false
        holdReply = nil
        isOwned = false
        tracking = .none
        doubt = nil
        recording = nil
        intentLog = nil
        isClearingHeld = false
        logDeadline = .max
        lossDeadline = .max
        ticks = 0
        savingLayers = []
        retriesDoubt = false
        hasFailed = false
        evidenceHasFailed = false
        hasFailedSync = false
        lastRelease = 0
        seenLost = source.lostCount
        isLossUnderWay = false
        isSaidInMemory = false
        hasUnrecorded = false
        wasTold = false
    }

    var ring: SimulatedRing { world.rings[number % world.rings.count] }
    var sizeBytes: UInt64 { source.shape.sizeBytes }
    var geometry: ClusterGeometry { ClusterGeometry(sizeBytes: sizeBytes) }
    var hasRequests: Bool { requests.contains { $0 != nil } }

    func blocks(_ bytes: Range<UInt64>) -> Range<Int> {
        Int(bytes.lowerBound >> Self.blockShift)..<Int((bytes.upperBound - 1) >> Self.blockShift)
            + 1
    }

    /// Something has happened after which answers may name more than was changed.
    func spoilExactness() {
        for index in checkpoints.indices { checkpoints[index].isExact = false }
    }

    /// The disk becomes larger while nobody serves it.
    func grow() {
        source.grow()
        answered += [UInt32](repeating: 0, count: source.versions.count - answered.count)
        spoilExactness()
    }

    // MARK: Actions

    /// Carries out everything that the disk's changes ask for, in order.
    func perform() {
        guard !isPerforming else { return }
        isPerforming = true
        while world.violation == nil, let action = changes.nextAction(&ring.places) {
            carryOut(action)
        }
        isPerforming = false
    }

    private func carryOut(_ action: DiskAction) {
        switch action {
        case .submit(let change): submitChange(change.number)
        case .zero(let request): resumeZeroing(request.number)
        case .quiet: holdReply?()
        case .readSource(let copy, let clusters): startCopy(copy, clusters)
        case .writeScratch(let write): startScratchWrite(write)
        case .copyDone(let copy): endCopy(copy)
        case .jobBroken(let job, let cause): jobBroke(job, cause)
        case .jobDetached(let job): jobDetached(job)
        case .writeLog(let generation): writeLog(generation)
        case .syncBits: saveBits()
        case .declareLoss: declareLoss()
        }
    }
}
