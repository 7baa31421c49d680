import BoundedCalls
import Foundation
package import ServerInterface

/// What the manager is told once.
package struct JobManagerSettings: Sendable {
    /// The last server to end was one of this program; a crash of another, which failed to take
    /// over, says nothing of the disks that this one serves.
    package var countsCrashes = true
    /// Where jobs without a `<server>` put their sockets.
    ///
    /// Absolute path.
    package var runDirectory: String
    /// The live exports' endpoint that URIs name.
    package var liveEndpoint: ListenEndpoint
    /// Whether plaintext TCP may leave this machine.
    package var allowPlaintext: Bool
    /// Whether the engine has credentials for TLS.
    package var offersTLS: Bool
    /// A guest write held by copying for longer breaks the job.
    ///
    /// Milliseconds.
    package var copyTimeoutMilliseconds: UInt64
    /// A call waits so long for a path that does not answer.
    ///
    /// Milliseconds.
    package var storageMilliseconds: Int32 = 30_000
    /// The start waits so long for all disks together before it says which are not there; those
    /// that are there have been served since they are.
    ///
    /// Milliseconds.
    package var startMilliseconds: Int32 = 10_000
    /// Bytes per bit of a dirty bitmap, for domains that do not say.
    package var granularityBytes: UInt32
    /// Where scratch files go for which a request names no place; nil: beside the disk.
    ///
    /// Absolute path.
    package var scratchDirectory: String?
    /// Where each disk gets a socket for a machine that comes with vhost-user, DOMAIN-TARGET.sock;
    /// nil: only disks whose definition names one have it.
    ///
    /// Absolute path.
    package var vhostDirectory: String?
    /// A job that has no client for so long is told of; nil: never.
    ///
    /// Seconds.
    package var idleAfterSeconds: Int?
    /// Freezes guests for checkpoints and backups that ask for it; nil: nobody can.
    package var freezer: (any GuestFreezing)?
    /// Starts the workers of pushes; nil: there are no pushes.
    package var pusher: (any PushStarting)?

    package init(
        runDirectory: String, liveEndpoint: ListenEndpoint, allowPlaintext: Bool = false,
        offersTLS: Bool = false, copyTimeoutMilliseconds: UInt64 = 30_000,
        granularityBytes: UInt32 = TrackingGranularity.bytesDefault,
        scratchDirectory: String? = nil
    ) {
        self.scratchDirectory = scratchDirectory
        self.granularityBytes = granularityBytes
        self.runDirectory = runDirectory
        self.liveEndpoint = liveEndpoint
        self.allowPlaintext = allowPlaintext
        self.offersTLS = offersTLS
        self.copyTimeoutMilliseconds = copyTimeoutMilliseconds
    }
}

/// Domains and backup jobs: the one place that decides, whatever front-end asks.
///
/// An actor over a `BackupEngine`. It may be entered again while it waits for the engine, so names
/// and jobs are reserved before every wait. A refused call leaves nothing changed.
package actor JobManager {
    /// Domains at once: a limit against runaway scripts.
    package static let domainsMax = 4096
    /// Jobs at once, over all domains: each costs a listener and scratch on every disk.
    package static let jobsMax = 256
    /// The longest time to live that is accepted: ten years, in seconds.
    package static let timeToLiveSecondsMax: UInt64 = 315_360_000

    let engine: any BackupEngine
    let state: StateDirectory?
    let settings: JobManagerSettings
    package nonisolated let events: EventLog
    /// When the server began.
    let startedAt = Date()

    var domains: [String: ManagedDomain] = [:]
    /// Domains being defined, changed or undefined now, by name, with their uuids.
    var reserved: [String: String] = [:]
    /// Live exports that are closed for a change: nobody opens them.
    var attachingExports: Set<String> = []
    /// Names of domains some of whose disks may be another server's.
    var movedDomains: Set<String> = []
    /// Images that stand in for disks, as they were written last, by path.
    var standIns: [String: StandInImage] = [:]
    var openings: [String: Task<Void, Never>] = [:]
    /// Tries disks that could not be opened at the start again.
    var retries: Task<Void, Never>?
    /// For looks at paths that users named: none of them is made on the actor.
    let storage = StorageCalls()
    /// Domains whose checkpoints are being changed, and who waits to change them.
    var checkpointQueues: [String: [CheckedContinuation<Void, Never>]] = [:]
    var jobs: [String: Job] = [:]
    /// Ended jobs, by domain.
    var history: [String: History] = [:]
    /// Jobs that did not end well and have left something behind, by id.
    var unsettled: [String: Unsettled] = [:]
    /// Live exports and jobs that are set aside as servers crash over them, with the reason.
    var disksAside: [String: String] = [:]
    /// Jobs that have not been resumed stay as they are.
    var isAbandoned = false
    var jobsAside: [String: String] = [:]
    /// Files of the state directory that could not be read, by path.
    var unreadable: [String: StateDirectory.DamagedFile] = [:]
    /// What the engine's disks are called, also those that were attached a while ago.
    var diskNames = DiskNames()
    var isStopping = false
    /// Another server is about to take this one's place: nothing is begun or changed.
    var isLeaving = false
    var nextDiskIndex = 1
    var lastScratchSuffix: Int64 = 0
    /// Pushes whose workers are being started again.
    var startingPushes: Set<String> = []
    /// For the counters of `/metrics`: jobs begun, and ended by outcome.
    var begunJobs: UInt64 = 0
    var endedCounts: [String: UInt64] = [:]
    /// For how long machines' writes were held at the begins of jobs.
    var holds = DurationHistogram()
    /// Bytes that clients have read of jobs that have ended.
    var endedReadBytes: UInt64 = 0
    /// Looks for jobs without a client.
    var idleWatch: Task<Void, Never>?
    var pump: Task<Void, Never>?

    package init(
        engine: any BackupEngine, state: StateDirectory?, settings: JobManagerSettings,
        events: EventLog = EventLog()
    ) {
        self.engine = engine
        self.state = state
        self.settings = settings
        self.events = events
    }

    /// Starts listening to the engine; call once, before anything else.
    package func activate() {
        guard pump == nil else { return }
        // A job's break is also in its next report, so a dropped event is late, not lost.
        let (stream, continuation) = AsyncStream.makeStream(
            of: ServerEvent.self, bufferingPolicy: .bufferingNewest(4096))
        engine.setEventHandler { continuation.yield($0) }
        pump = Task { [weak self] in
            for await event in stream { await self?.receive(event) }
        }
        watchForIdleJobs()
    }

    /// Ends every job, removes what they made, and stops the engine.
    ///
    /// Nothing is begun afterwards.
    package func shutdown() async {
        isStopping = true
        retries?.cancel()
        idleWatch?.cancel()
        storage.stop()
        pausePushes()
        await engine.refuseNewCalls()
        // A begin in progress ends itself when it sees `isStopping`; the loop is bounded by the
        // engine's own limits. All jobs end at once: one whose storage hangs holds up no other.
        while !jobs.isEmpty {
            await withTaskGroup(of: Void.self) { group in
                for job in Array(jobs.values) where job.state.acceptsEnd {
                    group.addTask { _ = try? await self.end(job: job.id, cause: .shutdown) }
                }
            }
            guard jobs.values.contains(where: { $0.state.isChanging }) else { break }
            try? await Task.sleep(for: .milliseconds(10))
        }
        await engine.shutdown()
        pump?.cancel()
        removeStandIns()
        events.close()
    }

    private func receive(_ event: ServerEvent) {
        switch event {
        case .jobBroken(let id, let reason):
            markBroken(id, reason)
        case .scratchWatermark(let id, let target, let used, let limit):
            events.append(
                ControlEvent(
                    .watermark, domain: jobs[id]?.domain, id: id, disk: target, usedBytes: used,
                    limitBytes: limit))
        case .trackingLost(let disk, let detail):
            noteTracking(
                disk,
                "changes can no longer be recorded (\(detail)): its checkpoints are given up")
        case .trackingProblem(let disk, let detail):
            noteTracking(disk, detail)
        case .diskProblem(let disk, let detail):
            note(.diskProblem, of: disk, detail)
        case .clientRefused(let id, let reason):
            events.append(
                ControlEvent(
                    .clientRefused, domain: id.flatMap { jobs[$0]?.domain }, id: id,
                    message: reason))
        case .guestProblem(let export, let reason):
            var event = clientEvent(.guestProblem, export, nil)
            event.message = reason
            events.append(event)
        case .clientConnected(let export, let id):
            if let id { jobs[id]?.idle = IdleTime() }
            events.append(clientEvent(.clientConnect, export, id))
        case .clientDisconnected(let export, let id):
            events.append(clientEvent(.clientDisconnect, export, id))
        }
    }

    private func clientEvent(
        _ kind: ControlEvent.Kind, _ export: String, _ id: String?
    ) -> ControlEvent {
        var event = ControlEvent(kind, id: id, name: export)
        if let id {
            event.domain = jobs[id]?.domain
            event.disk = jobs[id]?.exports.first { $0.name == export }?.disk
            return event
        }
        for domain in domains.values {
            for disk in domain.definition.disks
            where domain.definition.liveExportName(target: disk.target) == export {
                event.domain = domain.definition.name
                event.disk = disk.target
            }
        }
        return event
    }

    /// Notes that a job broke; only the first time is an event.
    func markBroken(_ id: String, _ reason: String) {
        guard let job = jobs[id], let next = try? job.state.after(.broke(reason: reason)),
            next != job.state
        else { return }
        jobs[id]?.state = next
        if job.state.brokenReason == nil {
            events.append(
                ControlEvent(.jobBroken, domain: job.domain, id: id, message: reason))
            // One that is being ended may have no record any more.
            if case .running = job.state { keepReason(id, reason) }
        }
    }
}

extension JobState {
    /// Whether somebody may end the job now.
    var acceptsEnd: Bool {
        switch self {
        case .running, .broken: true
        case .starting, .ending, .ended: false
        }
    }
    /// Whether somebody is ending the job.
    var isEnding: Bool {
        if case .ending = self { true } else { false }
    }
    /// Whether an answer of the engine is awaited.
    var isChanging: Bool {
        switch self {
        case .starting, .ending: true
        case .running, .broken, .ended: false
        }
    }
}
