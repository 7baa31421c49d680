import Disk
import NBDProtocol
import ServerInterface
import SystemLayer
import Tracking
import TrackingFiles

/// Makes a disk larger whose source is long enough already: its record, its home ring, and what new
/// connections are told.
///
/// What it does with files it does at once, in `step`. No mark leaves the log from the moment when
/// nothing is written for the disk's record until the call has ended.
struct EnlargeCall: RingCall {
    /// The record before, and a log for the larger disk.
    private typealias Tracked = (store: TrackingStore, log: IntentLogFile)

    private enum State {
        case resting(RestCall)
        /// The log was made, which takes as long as it takes: the ring's time counts from the next
        /// step.
        case prepared(DiskGrowth, Tracked?)
        case growing(GrowCall, DiskGrowth, Tracked?)
    }

    private let disk: DiskID
    private let export: LiveExport
    private let sizeBytes: UInt64
    private let server: NBDServer
    private let own = Replies()
    private var state: State

    var replies: Replies {
        switch state {
        case .resting(let call): call.replies
        case .prepared: own
        case .growing(let call, _, _): call.replies
        }
    }

    var deadline: UInt64 {
        switch state {
        case .resting(let call): call.deadline
        case .prepared: 0
        case .growing(let call, _, _): call.deadline
        }
    }

    /// The caller has the disk for itself, and no job runs on it.
    init(
        _ disk: DiskID, _ export: LiveExport, to sizeBytes: UInt64, _ server: NBDServer,
        now: UInt64 = MonotonicClock.now()
    ) {
        self.disk = disk
        self.export = export
        self.sizeBytes = sizeBytes
        self.server = server
        state = .resting(
            RestCall(
                disk, server.shared.mailboxes[export.homeRing],
                milliseconds: server.shared.configuration.storageMilliseconds, now: now))
    }

    mutating func step(now: UInt64) -> Result<Bool, ServerFault>? {
        guard let outcome = next(now) else { return nil }
        ring.post(.resumeClearing(disk))
        return outcome
    }

    private var ring: Mailbox<RingMessage> { server.shared.mailboxes[export.homeRing] }

    private mutating func next(_ now: UInt64) -> Result<Bool, ServerFault>? {
        switch state {
        case .resting(var call):
            let outcome = call.step(now: now)
            state = .resting(call)
            guard let outcome else { return nil }
            return rested(outcome)
        case .prepared(let growth, let tracked):
            state = .growing(GrowCall(disk, growth, ring, now: now), growth, tracked)
            return nil
        case .growing(var call, let growth, let tracked):
            let outcome = call.step(now: now)
            state = .growing(call, growth, tracked)
            guard case .success? = outcome else { return outcome }
            finish(growth, tracked)
            return .success(true)
        }
    }

    private mutating func rested(_ outcome: RestCall.Outcome) -> Result<Bool, ServerFault>? {
        switch outcome {
        case .resting: return prepare()
        case .busy:
            return .failure(
                .timedOut(
                    what: "'\(export.source.path)', whose changes are being made durable",
                    milliseconds: UInt64(server.shared.configuration.storageMilliseconds)))
        case .stuck:
            return .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
        }
    }

    /// Nothing is being written for the disk's record.
    private mutating func prepare() -> Result<Bool, ServerFault>? {
        var tracked: Tracked?
        if case .success(let (_, store)) = server.store(disk) {
            do throws(TrackingFault) {
                tracked = (store, try store.logForGrowth(to: sizeBytes))
            } catch {
                return .failure(
                    .resizeRefused(
                        name: export.description.name,
                        detail: "its change tracking cannot grow: \(NBDServer.text(error))"))
            }
        }
        let growth = DiskGrowth(
            sizeBytes: sizeBytes,
            tracking: tracked.map { ($0.log, $0.store.blockCount(of: sizeBytes)) })
        state = .prepared(growth, tracked)
        return nil
    }

    /// The ring is ready for it: now it may be told.
    private func finish(_ growth: DiskGrowth, _ tracked: Tracked?) {
        export.source.grow(to: sizeBytes)
        guard let tracked, let recording = growth.recording.value else { return }
        let store = tracked.store.grown(to: sizeBytes, recording: recording, log: tracked.log)
        guard server.keep(store, disk) else { return }
        do throws(TrackingFault) {
            try store.saveGrowth()
        } catch {
            // Its loss has been told.
            if error == .lost { return }
            server.shared.emit(
                .trackingProblem(
                    disk: disk,
                    detail:
                        "its new size cannot be recorded (\(NBDServer.text(error))): after an"
                        + " unclean stop all of it counts as changed"))
        }
    }
}
