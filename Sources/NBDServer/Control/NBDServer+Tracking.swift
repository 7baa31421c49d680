import BoundedCalls
import Disk
import NBDProtocol
import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// What the control thread knows of disks' tracking beside their stores.
struct TrackingCare: Sendable {
    /// What says that a disk's changes are not recorded, by disk.
    var doubts: [DiskID: TrackingDoubt] = [:]
    /// What is wrong with tracking that goes on.
    var problems: [DiskID: String] = [:]
    /// Tracking that is still being closed, on threads of their own.
    var closing: [Closing] = []
    /// Why the tracking in a directory could not be closed in order the last time.
    var closeFailures: [String: String] = [:]

    struct Closing: Sendable {
        let doubt: TrackingDoubt
        /// The end of its disk has waited for it in vain.
        var isOverdue = false
    }
}

/// A disk's change tracking comes and goes with the disk.
extension NBDServer {
    /// Tracking of an attached disk, as calls know it.
    enum DiskTracking: Sendable {
        case store(TrackingStore)
        /// There is none: it could not be opened, or was lost.
        case unavailable(String)
    }

    /// Opens the tracking of a disk that is being attached; nil when none is wanted.
    ///
    /// A disk is served even when its changes cannot be tracked: the guest comes first, and every
    /// use of a checkpoint says why it is not there. But not before that is said where the next
    /// start sees it; where it cannot be said, the disk is refused, and so is one that is too large
    /// for its granularity. An empty disk is served untracked: what it had recorded is of other
    /// content.
    func openTracking(
        _ configuration: DiskConfiguration, _ source: RawSource, _ disk: DiskID
    ) throws(ServerFault) -> (DiskTracking, TrackingSeed?)? {
        guard let tracking = configuration.tracking, !source.isReadOnly else { return nil }
        let places = Self.places(
            tracking.directory, source, shared.configuration.witnessDirectory)
        let doubt = TrackingDoubt(places, spare: shared.spare)
        state.withLock {
            $0.trackingCare.doubts[disk] = doubt
            $0.trackingCare.closeFailures[tracking.directory] = nil
        }
        // The machine was to hear of lost writes, and the server died before.
        if doubt.hasUnheardLoss { source.expectLossToBeHeard() }
        if source.earlierLoss != nil { doubt.say(isUnheard: true) }
        let closing = state.withLock { state in
            state.trackingCare.closing.map(\.doubt).filter { $0.directory == tracking.directory }
        }
        guard source.sizeBytes > 0 else {
            for other in closing { other.bar() }
            let detail =
                "the disk was empty when it was attached (attach it again when it has grown)"
            return (.unavailable(try serveUntracked(detail, source, doubt, disk)), nil)
        }
        do throws(TrackingFault) {
            guard closing.isEmpty else {
                // What it still writes must not contradict what is said here.
                for other in closing { other.bar() }
                throw .system(
                    path: tracking.directory, SystemFault(call: "close", errno: Errno.again))
            }
            let store = try TrackingStore.open(
                places, source: try Self.identity(source, source.remote?.before),
                granularityBytes: tracking.granularityBytes, earlierLoss: source.earlierLoss)
            doubt.prepare(store)
            return (
                .store(store),
                TrackingSeed(recording: store.recording, log: store.log, doubt: doubt)
            )
        } catch {
            switch error {
            case .tooManyBlocks, .newer:
                // Served untracked the disk would lose what is kept, and what is kept would be
                // wrong.
                dropTracking(disk)
                throw .sourceUnusable(path: source.path, detail: Self.text(error))
            default: break
            }
            let reason = Self.text(error)
            return (.unavailable(try serveUntracked(reason, source, doubt, disk)), nil)
        }
    }

    /// Says that a disk is served untracked; returns what is to be known of it.
    private func serveUntracked(
        _ reason: String, _ source: RawSource, _ doubt: TrackingDoubt, _ disk: DiskID
    ) throws(ServerFault) -> String {
        let outcome = doubt.declare()
        guard outcome.isSaid else {
            dropTracking(disk)
            throw .sourceUnusable(
                path: source.path,
                detail: "its changes cannot be tracked (\(reason)), and that they are not cannot be"
                    + " noted anywhere (\(outcome.failures.joined(separator: ", ")))")
        }
        guard !outcome.isDurable else { return "changes are not recorded: \(reason)" }
        keepDeclaring(doubt)
        return "changes are not recorded: \(reason); \(Self.text(outcome))"
    }

    private func keepDeclaring(_ doubt: TrackingDoubt) {
        shared.runDoubt {
            doubt.keepDeclaring(everyMilliseconds: Limits.doubtRetryMilliseconds)
        }
    }

    // MARK: Places

    private static func places(
        _ directory: String, _ source: RawSource, _ witness: String?
    ) -> TrackingPlaces {
        let memory = memory("tracking", for: directory, witness)
        return TrackingPlaces(
            files: DiskDirectory(directory), memory: memory.map { DiskDirectory($0.path) },
            isInMemory: memory?.isInMemory ?? false,
            mark: source.remote == nil
                ? AttributeMark(source.raw, isFile: source.type == .regular, owner: source) : nil)
    }

    /// Where sessions are, in memory that outlives the process.
    package static let memoryDirectory = "/dev/shm/nbdpull-\(SystemFacts.effectiveUser)"

    /// A directory for what belongs to another one, such as a disk's session: in memory that
    /// outlives the process, or else where the server was told.
    static func memory(
        _ kind: String, for directory: String, _ witness: String?
    ) -> (path: String, isInMemory: Bool)? {
        // The session says whose it is.
        let name = "\(kind)-" + String(StableHash(directory).value, radix: 16)
        if StateFiles.isMemory("/dev/shm") {
            try? StateFiles.makeDirectory(memoryDirectory)
            if StateFiles.isPrivate(memoryDirectory) { return ("\(memoryDirectory)/\(name)", true) }
        }
        guard let witness else { return nil }
        try? StateFiles.makeDirectory(witness)
        return ("\(witness)/\(name)", StateFiles.isMemory(witness))
    }

    /// Forgets what is said in memory of a disk's tracking, once its tracking directory is removed
    /// for good: without a record there is nothing to doubt.
    package func forgetTracking(directory: String) {
        state.withLock { $0.trackingCare.closeFailures[directory] = nil }
        guard
            let memory = Self.memory(
                "tracking", for: directory, shared.configuration.witnessDirectory),
            !state.withLock({ state in
                state.trackingCare.doubts.values.contains { $0.directory == directory }
            })
        else { return }
        TrackingPlaces.forgetSession(in: DiskDirectory(memory.path), of: directory)
    }

    /// `remote`: the files behind a source that is no file here, as far as they are known.
    private static func identity(
        _ source: RawSource, _ remote: RemoteState?
    ) throws(TrackingFault) -> SourceIdentity {
        guard source.type == .regular else {
            return SourceIdentity(
                path: source.path, sizeBytes: source.sizeBytes, inode: remote?.files ?? 0,
                changedNanoseconds: remote?.changed ?? 0)
        }
        do throws(SystemFault) {
            let facts = try FileCalls.identity(source.raw)
            return SourceIdentity(
                path: source.path, sizeBytes: source.sizeBytes, inode: facts.inode,
                changedNanoseconds: facts.changedNanoseconds)
        } catch {
            throw .system(path: source.path, error)
        }
    }

    // MARK: Ending

    /// The disk has been withdrawn and synced: its bits are exact.
    ///
    /// `remote`: the files behind it, which nobody here has open any more.
    func closeTracking(_ disk: DiskID, _ source: RawSource, _ remote: RemoteState?) {
        let (tracking, doubt) = state.withLock { state in
            state.trackingCare.problems[disk] = nil
            return (
                state.tracking.removeValue(forKey: disk),
                state.trackingCare.doubts.removeValue(forKey: disk)
            )
        }
        guard let tracking, let doubt else { return }
        close(doubt) {
            switch tracking {
            case .unavailable:
                if !(doubt.lastOutcome?.isDurable ?? false) { _ = doubt.declare() }
            case .store(var store):
                do throws(TrackingFault) {
                    store.compressSealed()
                    try store.close(source: try Self.identity(source, remote))
                } catch {
                    // The record still says "in use": the next start treats the stop as unclean.
                    let text = Self.text(error)
                    self.state.withLock {
                        $0.trackingCare.closeFailures[doubt.directory] = text
                    }
                }
            }
            doubt.retire()
        }
    }

    /// The disk has been withdrawn and not synced: nothing is marked as exact, but that its changes
    /// were not recorded is said once more where it is not known to last.
    func abandonTracking(_ disk: DiskID) {
        let doubt = state.withLock { state -> TrackingDoubt? in
            guard case .unavailable = state.tracking[disk] else { return nil }
            return state.trackingCare.doubts.removeValue(forKey: disk)
        }
        guard let doubt else { return }
        guard doubt.lastOutcome?.isDurable != true else { return doubt.retire() }
        close(doubt) {
            _ = doubt.declare()
            doubt.retire()
        }
    }

    /// What says that a disk's changes are not, or may not be, recorded.
    func doubt(_ disk: DiskID) -> TrackingDoubt? {
        state.withLock { $0.trackingCare.doubts[disk] }
    }

    /// The disk has lost writes: what is clean by its bits may have changed.
    ///
    /// Nothing is said once another disk has the directory.
    func distrustTracking(_ doubt: TrackingDoubt) {
        let isTaken = state.withLock { state in
            state.trackingCare.doubts.values.contains {
                $0 !== doubt && $0.directory == doubt.directory
            }
        }
        guard !isTaken else { return }
        _ = doubt.sayInMemory()
        close(doubt) { _ = doubt.declare() }
    }

    /// Forgets the tracking of a disk as it is: the next start treats the stop as unclean.
    ///
    /// `mayBeDoubted`: somebody may have to say yet that the disk has lost writes.
    func dropTracking(_ disk: DiskID, mayBeDoubted: Bool = false) {
        // Its files are closed when nobody holds the lock: rings take it.
        let (gone, doubt) = state.withLock { state in
            state.trackingCare.problems[disk] = nil
            return (
                state.tracking.removeValue(forKey: disk),
                state.trackingCare.doubts.removeValue(forKey: disk)
            )
        }
        if !mayBeDoubted { doubt?.retire() }
        withExtendedLifetime(gone) {}
    }

    /// Closes on a thread of its own, as a file system that hangs must not take the control thread
    /// with it; until it is done nobody opens the directory again.
    func close(_ doubt: TrackingDoubt, _ body: @escaping @Sendable () -> Void) {
        let isStuck = state.withLock { state in
            defer { state.trackingCare.closing.append(.init(doubt: doubt)) }
            return state.trackingCare.closing.contains(where: \.isOverdue)
        }
        let closed = Latch(count: 1)
        let work: @Sendable () -> Void = {
            body()
            self.state.withLock { $0.trackingCare.closing.removeAll { $0.doubt === doubt } }
            closed.arrive()
        }
        guard DetachedThread.run(name: "nbdpull-close", work) else { return work() }
        // Where one hangs, the others are not waited for as long: a stop has an end.
        let isClosed = closed.wait(
            milliseconds: isStuck
                ? Limits.trackingStuckMilliseconds : Limits.trackingCloseMilliseconds)
        if !isClosed { noteOverdue(doubt) }
    }

    func noteOverdue(_ doubt: TrackingDoubt) {
        state.withLock { state in
            let index = state.trackingCare.closing.firstIndex { $0.doubt === doubt }
            if let index { state.trackingCare.closing[index].isOverdue = true }
        }
    }

    // MARK: Loss and problems

    /// Keeps what is told of tracking; on any thread.
    ///
    /// False: it was told before, by a ring or a call that has noticed the same.
    func noteTracking(_ event: ServerEvent) -> Bool {
        switch event {
        case .trackingLost(let disk, let detail):
            return state.withLock { state in
                switch state.tracking[disk] {
                case nil: return true
                case .unavailable: return false
                case .store:
                    state.tracking[disk] = .unavailable(
                        "changes could not be recorded durably (\(detail)): its checkpoints are"
                            + " given up")
                    return true
                }
            }
        case .trackingProblem(let disk, let detail):
            state.withLock { $0.trackingCare.problems[disk] = detail }
            return true
        default: return true
        }
    }

    /// A checkpoint can neither be made nor taken back: no incremental backup may rely on any.
    func trackingIsLost(_ disk: DiskID, _ detail: String) {
        shared.emit(.trackingLost(disk: disk, detail: detail))
        guard let doubt = state.withLock({ $0.trackingCare.doubts[disk] }) else { return }
        // At once where nothing can hang.
        _ = doubt.sayInMemory()
        shared.declareOnThread(doubt, of: disk) {}
    }

    // MARK: Looking

    func trackingStatus(_ disk: DiskID) -> TrackingStatus? {
        let (tracking, problem) = state.withLock {
            ($0.tracking[disk], $0.trackingCare.problems[disk])
        }
        switch tracking {
        case nil: return nil
        case .unavailable(let text):
            return TrackingStatus(
                granularityBytes: 0, checkpoints: [], dirtyBytes: 0, recoveredBytes: 0,
                problem: problem.map { "\(text); \($0)" } ?? text)
        case .store(let store):
            return TrackingStatus(
                granularityBytes: store.record.granularityBytes,
                checkpoints: store.record.chain.checkpoints,
                dirtyBytes: min(
                    UInt64(store.recording.dirtyCount) << store.granularityShift,
                    store.record.source.sizeBytes),
                recoveredBytes: store.recoveredBytes, problem: problem ?? store.problem)
        }
    }

    /// The store of a tracked disk, or why there is none.
    ///
    /// A disk that has lost writes has none from here on: what is noticed by a begin or a seal
    /// outlives the process as well as what its ring notices.
    func store(_ disk: DiskID) -> Result<(LiveExport, TrackingStore), ServerFault> {
        let (export, tracking) = state.withLock { ($0.disks[disk], $0.tracking[disk]) }
        guard let export else { return .failure(.unknownDisk) }
        switch tracking {
        case .store where export.source.hasLostWrites:
            trackingIsLost(disk, TrackingLoss.lostWrites)
            return .failure(
                .notTracked(export: export.description.name, detail: TrackingLoss.lostWrites))
        case .store(let store): return .success((export, store))
        case .unavailable(let text):
            return .failure(.notTracked(export: export.description.name, detail: text))
        case nil:
            return .failure(
                .notTracked(
                    export: export.description.name, detail: "the disk is served untracked"))
        }
    }

    static func text(_ fault: TrackingFault) -> String {
        switch fault {
        case .system(let path, let fault): "'\(path)': \(fault.call): \(fault.errorText)"
        case .sourceLost(let errno):
            "writes to the disk were lost while no server had it (\(SystemFault.text(for: errno))):"
                + " older checkpoints are given up"
        case .unknownCheckpoint(let name): "there is no checkpoint '\(name)'"
        case .checkpointExists(let name): "checkpoint '\(name)' exists already"
        case .damagedLayer(let path, let detail): "'\(path)' is damaged: \(detail)"
        case .tooManyBlocks(let size, let granularity, let needed):
            "its \(size) bytes are more than \(LayerCodec.blockCountMax) blocks of \(granularity)"
                + " bytes, the most that are tracked: "
                + (needed <= TrackingStore.granularityBytesMax
                    ? "use a granularity of \(needed) bytes or more" : "no granularity is enough")
        case .recordFull(let limit):
            "its record would be longer than \(limit) bytes: delete checkpoints"
        case .newer(let path, let version):
            "'\(path)' was written by a newer version (format \(version)): start the newer version"
                + " again, or move the file away to serve the disk without its checkpoints"
        case .lost: "changes could not be recorded meanwhile: its checkpoints are given up"
        case .notMoved(let detail): detail
        }
    }

    /// What became of the attempt to say that a disk is not tracked, where that is not durable.
    static func text(_ outcome: DoubtOutcome) -> String {
        outcome.isSaid
            ? "that could only be noted until the machine is restarted"
                + " (\(outcome.failures.joined(separator: ", ")))"
            : "that could not be noted anywhere (\(outcome.failures.joined(separator: ", ")));"
                + " take full backups after the next start"
    }
}

extension ServerShared {
    /// Says on a thread that a disk's changes are no longer recorded; `said` follows in any case.
    ///
    /// Never waits. Without a thread `said` is called at once, and a thread is asked for again.
    func declareOnThread(
        _ doubt: TrackingDoubt, of disk: DiskID, said: @escaping @Sendable () -> Void
    ) {
        let isStarted = startThread("nbdpull-doubt") { self.declare(doubt, of: disk, said: said) }
        if isStarted { return }
        said()
        retryDoubt { self.declare(doubt, of: disk) {} }
    }

    /// Runs on a thread what tries to say a doubt: now, or as soon as there is one to be had.
    func runDoubt(_ body: @escaping @Sendable () -> Void) {
        if !startThread("nbdpull-doubt", body) { retryDoubt(body) }
    }

    private func retryDoubt(_ body: @escaping @Sendable () -> Void) {
        _ = Alarms.shared.set(after: Limits.threadRetryMilliseconds) { self.runDoubt(body) }
    }

    /// Says that a disk's changes are no longer recorded, and keeps trying; for a thread of its
    /// own.
    ///
    /// `said` is called after the first attempt, whatever came of it.
    func declare(_ doubt: TrackingDoubt, of disk: DiskID, said: () -> Void) {
        let outcome = doubt.declare()
        said()
        guard !outcome.isDurable, !doubt.isOver else { return }
        emit(.trackingProblem(disk: disk, detail: NBDServer.text(outcome)))
        doubt.keepDeclaring(everyMilliseconds: Limits.doubtRetryMilliseconds)
    }
}
