import Disk
import IORing
import Synchronization

/// The server: rings, disks with their live exports, jobs with their backup exports.
///
/// Every call goes to one control thread and runs there whole, one after the other; the data path
/// never sees it but by messages to the rings. A call may wait for requests in flight, bounded by
/// named limits.
package final class NBDServer: Sendable {
    let shared: ServerShared
    let live = ExportScope(jobID: nil)
    let state = Mutex(ServerState())
    private let threads: [WorkerThread]
    private let calls: Mailbox<ControlCall>
    private let controlThread: WorkerThread

    /// Work for the control thread; nil ends it.
    struct ControlCall: Sendable {
        let body: (@Sendable () -> Void)?
    }

    /// Starts the rings.
    package init(configuration: ServerConfiguration) throws(ServerFault) {
        SystemFacts.ignoreBrokenPipes()
        let rings = configuration.rings ?? Self.defaultRings
        guard (1...64).contains(rings) else {
            throw .limitReached(what: "rings (asked for \(rings), at least 1)", limit: 64)
        }
        // A pipe is two descriptors; peers that stall can keep all of them in use.
        let layout = RingLayout(rings: rings, servesJobs: configuration.servesJobs)
        let kept = Limits.reservedDescriptors + layout.descriptorsMax
        let room = SystemFacts.raiseDescriptorLimit() - kept
        guard configuration.maxConnections <= room else {
            throw .limitReached(
                what: "connections with this many descriptors (ulimit -n):"
                    + " \(configuration.maxConnections) were asked for", limit: max(room, 0))
        }
        let security = try SecurityStore(configuration.security)
        do throws(SystemFault) {
            shared = try ServerShared(layout, configuration, security: security)
            threads = try Self.startRings(shared)
            let calls = try Mailbox<ControlCall>()
            self.calls = calls
            controlThread = try WorkerThread(name: "nbdpull-control") {
                while true {
                    calls.wait()
                    for call in calls.takeAll() {
                        guard let body = call.body else { return }
                        body()
                    }
                }
            }
        } catch {
            throw .systemUnsupported(
                detail: "\(error.call): \(error.errorText); nbdpull needs io_uring of Linux 6.1 or"
                    + " newer (sysctl kernel.io_uring_disabled must be 0, and a container must"
                    + " allow it)")
        }
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
            var loop = try RingLoop(index: index, shared: shared)
            started.arrive()
            loop.run()
        } catch {
            failure.note(error)
            started.arrive()
        }
    }

    /// Runs a call on the control thread and waits for its result.
    func onControlThread<Value: Sendable>(
        _ body: @escaping @Sendable () -> Result<Value, ServerFault>
    ) async -> Result<Value, ServerFault> {
        await withCheckedContinuation { continuation in
            calls.post(ControlCall { continuation.resume(returning: body()) })
        }
    }

    /// Runs work on the control thread when the calls before it are done; nobody waits for it.
    func later(_ body: @escaping @Sendable () -> Void) { calls.post(ControlCall(body: body)) }

    /// Receives the server's events; set once, before the first disk is attached.
    package func setEventHandler(_ handler: @escaping @Sendable (ServerEvent) -> Void) {
        shared.setEventHandler { event in
            if case .trackingLost(let disk) = event { self.later { self.trackingIsLost(disk) } }
            handler(event)
        }
    }

    /// Reads credentials and access rules again; connections that are there keep theirs.
    ///
    /// On a fault nothing has changed.
    package func reloadSecurity() async throws(ServerFault) {
        _ = try await onControlThread { () -> Result<Bool, ServerFault> in
            Result { () throws(ServerFault) in
                try self.shared.security.reload()
                return true
            }
        }.get()
    }

    /// Stops accepting, finishes requests in flight, flushes and closes every source.
    ///
    /// The server is of no use after.
    package func shutdown() async {
        _ = await onControlThread { () -> Result<Bool, ServerFault> in
            self.stopEverything()
            return .success(true)
        }
        calls.post(ControlCall(body: nil))
        controlThread.join()
        for thread in threads { thread.join() }
    }

    private func stopEverything() {
        let (jobs, disks, listeners) = state.withLock { state in
            state.isStopping = true
            return (Array(state.jobs.keys), Array(state.disks.keys), state.liveListeners)
        }
        for listener in listeners { close(listener) }
        for job in jobs { _ = end(jobID: job) }
        for disk in disks { _ = detach(disk) }
        let stopped = Latch(count: shared.mailboxes.count)
        for mailbox in shared.mailboxes { mailbox.post(.stop(stopped)) }
        _ = stopped.wait(milliseconds: Limits.drainMilliseconds)
    }
}

/// What the control thread knows; nobody else changes it.
struct ServerState {
    var disks: [DiskID: LiveExport] = [:]
    var tracking: [DiskID: NBDServer.DiskTracking] = [:]
    var jobs: [String: RunningJob] = [:]
    var liveListeners: [RingListener] = []
    var lastDisk: UInt64 = 0
    var lastListener: UInt64 = 0
    var isStopping = false
}

/// Keeps the first ring's failure to start.
private final class RingFailure: Sendable {
    private let fault = Mutex<SystemFault?>(nil)
    var first: SystemFault? { fault.withLock { $0 } }
    func note(_ new: SystemFault) { fault.withLock { $0 = $0 ?? new } }
}
