import Disk
import PointInTime
import ScratchFiles
import ServerInterface
import SharedMemory
import Synchronization
import SystemLayer

/// What all rings and all calls share.
///
/// Nothing here is touched per request.
final class ServerShared: Sendable {
    let layout: RingLayout
    let mailboxes: [Mailbox<RingMessage>]
    let configuration: ServerConfiguration
    /// What is refused as a source and as scratch.
    let reserved: ReservedPaths
    let security: SecurityStore
    let counts: ConnectionCounts
    let copyMemory: CopyMemory
    /// Memory of guests that is mapped.
    let guestMemory: MappingBudget
    /// Numbers of descriptors that front-ends of vhost-user, and what disks can do without, may not
    /// reach: the kernel gives out the lowest that is free, so those above are left for everybody
    /// else.
    let spareDescriptorsEnd: Int
    let watch: ScratchWatch
    let places = SourcePlaces()
    /// What the threads are doing, for whoever comes after a crash.
    let flight: FlightRecorder
    /// For saying what must be said when descriptors have run out.
    let spare = SpareDescriptor()
    /// Starts a thread for what may hang; false when none can be had.
    let startThread: @Sendable (String, @escaping @Sendable () -> Void) -> Bool
    /// Sources that are reached by NBD.
    let upstreams = UpstreamRegistry()
    /// Listeners wait until a connection goes.
    let acceptWaits = Atomic<Bool>(false)
    private let nextGuestRing = Atomic<Int>(0)
    private let nextBackupRing = Atomic<Int>(0)
    private let handler = Mutex<(@Sendable (ServerEvent) -> Void)?>(nil)

    /// `isSimulated`: nobody sleeps on the mailboxes, and scratch is watched by nobody.
    init(
        _ layout: RingLayout, _ configuration: ServerConfiguration, security: SecurityStore,
        startThread: @escaping @Sendable (String, @escaping @Sendable () -> Void) -> Bool =
            DetachedThread.run(name:_:),
        flight: FlightRecorder? = nil, spareDescriptorsEnd: Int = .max, isSimulated: Bool = false
    ) throws(SystemFault) {
        self.spareDescriptorsEnd = spareDescriptorsEnd
        self.startThread = startThread
        self.flight = if let flight { flight } else { try FlightRecorder() }
        self.layout = layout
        self.security = security
        var boxes: [Mailbox<RingMessage>] = []
        for _ in 0..<layout.count {
            boxes.append(isSimulated ? Mailbox(unwatched: ()) : try Mailbox())
        }
        mailboxes = boxes
        self.configuration = configuration
        reserved = configuration.reserved()
        counts = ConnectionCounts(configuration)
        watch = isSimulated ? ScratchWatch(start: Self.noThread) : ScratchWatch()
        copyMemory = CopyMemory(limitBytes: configuration.copyMemoryBytes)
        guestMemory = MappingBudget(limitBytes: configuration.guestMemoryBytes)
    }

    private static let noThread: ThreadStart = { (_, _) throws(SystemFault) in
        throw SystemFault(call: "pthread_create", errno: Errno.again)
    }

    /// The ring for the next connection or disk: they are spread evenly.
    func pickRing(for duty: RingDuty) -> Int {
        let rings = layout.rings(for: duty)
        let number =
            switch duty {
            case .guests: nextGuestRing.add(1, ordering: .relaxed).oldValue
            case .backups: nextBackupRing.add(1, ordering: .relaxed).oldValue
            }
        return rings.lowerBound + Int(UInt(bitPattern: number) % UInt(rings.count))
    }

    /// The ring that accepts the connections of a kind.
    func acceptor(for duty: RingDuty) -> Mailbox<RingMessage> {
        mailboxes[layout.rings(for: duty).lowerBound]
    }

    func setEventHandler(_ new: @escaping @Sendable (ServerEvent) -> Void) {
        handler.withLock { $0 = new }
    }

    func emit(_ event: ServerEvent) {
        let handler = handler.withLock { $0 }
        handler?(event)
    }

    /// Keeps why a job's disk broke; the first reason is an event.
    func noteBroken(_ export: BackupExport, _ cause: BreakCause) {
        let reason = export.reason(for: cause)
        guard export.noteBroken(reason) else { return }
        emit(.jobBroken(id: export.jobID, reason: reason.whole))
    }

    /// Breaks a job's disk from any thread: from now on nothing that is read of it is handed out.
    ///
    /// Its home ring stops copying for it soon after.
    func breakNow(_ export: BackupExport, _ cause: BreakCause) {
        noteBroken(export, cause)
        export.ledger.view.close()
        mailboxes[export.homeRing].post(.breakJob(export, cause))
    }

    /// Says once that scratch of a job's disk is running out.
    func noteWatermark(_ export: BackupExport) {
        guard !export.watermarkSent.exchange(true, ordering: .relaxed) else { return }
        emit(
            .scratchWatermark(
                id: export.jobID, target: export.target,
                usedBytes: export.scratchUsedBytes.load(ordering: .relaxed),
                limitBytes: export.roomBytes))
    }

    /// A connection is gone: those who wait for its place are told.
    func drop(_ scope: ExportScope, _ peer: PeerAddress?, inHandshake: Bool) {
        counts.drop(scope, peer, inHandshake: inHandshake)
        if acceptWaits.exchange(false, ordering: .acquiringAndReleasing) {
            acceptor(for: .guests).post(.resumeAccepting)
            acceptor(for: .backups).post(.resumeAccepting)
        }
    }
}
