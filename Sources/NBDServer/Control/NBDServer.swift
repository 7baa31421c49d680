import BoundedCalls
import Disk
package import ServerInterface
import Synchronization
import SystemLayer

/// The server: rings, disks with their live exports, jobs with their backup exports.
///
/// A call is a task of its own. What it knows of others lies in `state` and is changed in short
/// steps under its lock; names, jobs and disks are reserved there before the first wait. Whatever
/// may hang runs on a thread of its own (`storage`), and a call that changes what a disk records or
/// preserves owns the disk meanwhile (`queues`). So a call waits for its own storage and for calls
/// on its own disks, never for others. The data path never sees a call but by messages to the
/// rings.
package final class NBDServer: Sendable {
    let shared: ServerShared
    let live = ExportScope(jobID: nil)
    let state = Mutex(ServerState())
    let storage = StorageCalls()
    let queues = DiskQueues()
    let openings = OpeningTurns()
    let threads: [WorkerThread]
    /// Where the next process finds what it needs to go on with jobs; nil: nowhere.
    let jobMemory: String?
    /// How the server before this one crashed.
    let crash: Mutex<CrashReport?>

    /// Starts the rings.
    package convenience init(configuration: ServerConfiguration) throws(ServerFault) {
        try self.init(configuration: configuration, startThread: DetachedThread.run(name:_:))
    }

    /// The same; `startThread` starts the threads that say what must be said of a disk's tracking.
    init(
        configuration: ServerConfiguration,
        startThread: @escaping @Sendable (String, @escaping @Sendable () -> Void) -> Bool
    ) throws(ServerFault) {
        SystemFacts.ignoreSignalsOfCalls()
        let rings = configuration.rings ?? Self.defaultRings
        guard (1...64).contains(rings) else {
            throw .limitReached(what: "rings (asked for \(rings), at least 1)", limit: 64)
        }
        // A pipe is two descriptors; peers that stall can keep all of them in use.
        let layout = RingLayout(rings: rings, servesJobs: configuration.servesJobs)
        let kept =
            Limits.reservedDescriptors + configuration.otherDescriptors + layout.descriptorsMax
        let descriptors = SystemFacts.raiseDescriptorLimit()
        let room = descriptors - kept
        guard configuration.maxConnections <= room else {
            throw .limitReached(
                what: "connections: \(configuration.maxConnections) need"
                    + " \(kept + configuration.maxConnections) descriptors, and the process may have"
                    + " \(descriptors) (raise ulimit -n, or lower --max-connections)",
                limit: max(room, 0))
        }
        let security = try SecurityStore(configuration.security)
        jobMemory = JobMemory.directory(configuration)
        do throws(SystemFault) {
            let (flight, crash) = try LastCrash.recorder(configuration, jobMemory)
            self.crash = Mutex(crash)
            shared = try ServerShared(
                layout, configuration, security: security, startThread: startThread,
                flight: flight, spareDescriptorsEnd: room - configuration.maxConnections)
            threads = try Self.startRings(shared)
        } catch {
            throw .systemUnsupported(
                detail: "\(error.call): \(error.errorText); nbdpull needs io_uring of Linux 6.1 or"
                    + " newer (sysctl kernel.io_uring_disabled must be 0, and a container must"
                    + " allow it)")
        }
    }

    /// A server whose rings somebody else drives; nothing that hangs threads is asked of it.
    init(simulating shared: ServerShared) {
        self.shared = shared
        threads = []
        jobMemory = nil
        crash = Mutex(nil)
    }

    private static var defaultRings: Int {
        min(SystemFacts.coreCount, ServerConfiguration.defaultRingsMax)
    }

    private static func startRings(
        _ shared: ServerShared
    ) throws(SystemFault) -> [WorkerThread] {
        let started = Latch(count: shared.mailboxes.count)
        let failure = RingFailure()
        var threads: [WorkerThread] = []
        for index in shared.mailboxes.indices {
            threads.append(
                try WorkerThread(name: shared.layout.threadName(of: index)) {
                    runRing(index, shared, started, failure)
                })
        }
        _ = started.wait(milliseconds: -1)
        if let fault = failure.first { throw fault }
        return threads
    }

    /// Runs on the ring's own thread: an io_uring belongs to the thread that made it.
    private static func runRing(
        _ index: Int, _ shared: ServerShared, _ started: Latch, _ failure: RingFailure
    ) {
        do throws(SystemFault) {
            var loop = try RingLoop(
                index: index, shared: shared,
                io: try KernelIO(index: index, shared: shared))
            started.arrive()
            loop.run()
        } catch {
            failure.note(error)
            started.arrive()
        }
    }

    /// Runs the body of a call that owns these disks meanwhile: no other call on one of them runs.
    ///
    /// The body waits for rings and for the state directory only, never for a path of a caller's.
    func onDisks<Value: Sendable>(
        _ disks: Set<DiskID>, _ body: @escaping @Sendable () -> Result<Value, ServerFault>
    ) async -> Result<Value, ServerFault> {
        guard await queues.take(disks, milliseconds: Limits.queueMilliseconds) else {
            return .failure(.disksTaken(milliseconds: UInt64(Limits.queueMilliseconds)))
        }
        defer { queues.giveBack(disks) }
        return await storage.run(
            at: .disks, what: "the server", .end(milliseconds: nil), body)
    }

    /// Runs work that owns a disk when the calls before it are done; nobody waits for it.
    func later(on disk: DiskID, _ body: @escaping @Sendable () -> Void) {
        Task {
            _ = await onDisks([disk]) { () -> Result<Bool, ServerFault> in
                body()
                return .success(true)
            }
        }
    }

    /// Receives the server's events; set once, before the first disk is attached.
    package func setEventHandler(_ handler: @escaping @Sendable (ServerEvent) -> Void) {
        shared.setEventHandler { event in
            if self.noteTracking(event) { handler(event) }
        }
    }

    /// Reads credentials and access rules again; connections that are there keep theirs.
    ///
    /// On a fault nothing has changed.
    package func reloadSecurity() async throws(ServerFault) {
        let security = shared.security
        let number = security.nextReload()
        let loaded = await storage.run(
            at: .security, what: StoragePlace.security.text,
            .begin(milliseconds: shared.configuration.storageMilliseconds)
        ) { Result { () throws(ServerFault) in try security.load() } }
        security.install(try loaded.get(), number)
    }
}

/// What calls know of the server; read and changed under its lock, in steps that wait for
/// nothing.
struct ServerState {
    var disks: [DiskID: LiveExport] = [:]
    var tracking: [DiskID: NBDServer.DiskTracking] = [:]
    var trackingCare = TrackingCare()
    var jobs: [String: RunningJob] = [:]
    /// Jobs that the last server has left, until their disks are there.
    var expected: [String: ExpectedJob] = [:]
    var liveListeners: [RingListener] = []
    /// Listeners for guests that come with vhost-user.
    var vhostListeners: [DiskID: RingListener] = [:]
    /// Exports of disks that are being attached, with the rings where they will live.
    var attaching: [String: NBDServer.Reservation] = [:]
    var lastReservation: UInt64 = 0
    /// Jobs that are being begun, with their disks, which stay until then.
    var beginning: [String: Set<DiskID>] = [:]
    /// Jobs that are being ended.
    var ending: Set<String> = []
    /// Disks that are being detached: no job begins on them.
    var detaching: Set<DiskID> = []
    /// Disks whose source is being extended, or may still be by a call that hangs.
    var growing: Set<DiskID> = []
    var lastDisk: UInt64 = 0
    var lastListener: UInt64 = 0
    var isStopping = false
    /// Everything was left to another server: nothing comes in any more.
    var hasLeft = false
}

/// Keeps the first ring's failure to start.
private final class RingFailure: Sendable {
    private let fault = Mutex<SystemFault?>(nil)
    var first: SystemFault? { fault.withLock { $0 } }
    func note(_ new: SystemFault) { fault.withLock { $0 = $0 ?? new } }
}
