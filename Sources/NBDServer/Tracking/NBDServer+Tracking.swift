import NBDProtocol
import Bitmap
import Disk
import IORing
import Synchronization

/// A disk's change tracking comes and goes with the disk.
extension NBDServer {
    /// Tracking of an attached disk, as the control thread knows it.
    enum DiskTracking: Sendable {
        case store(TrackingStore)
        /// There is none: it could not be opened, or was lost.
        case unavailable(String)
    }

    /// Opens the tracking of a disk that is being attached; nil when none is wanted.
    ///
    /// A disk is served even when its changes cannot be tracked: the guest comes first, and every
    /// use of a checkpoint says why it is not there.
    func openTracking(
        _ configuration: DiskConfiguration, _ source: RawSource
    ) -> (DiskTracking, TrackingSeed?)? {
        guard let tracking = configuration.tracking, !source.isReadOnly else { return nil }
        guard source.sizeBytes > 0 else {
            let detail = "the disk is empty: there is nothing to track until it grows"
            return (.unavailable(detail), nil)
        }
        do throws(TrackingFault) {
            let store = try TrackingStore.open(
                directory: tracking.directory, source: Self.identity(source),
                granularityBytes: tracking.granularityBytes)
            let log = try Self.makeLog(store, source)
            return (
                .store(store),
                TrackingSeed(
                    recording: store.recording, log: log, directory: store.directory)
            )
        } catch {
            return (.unavailable(Self.text(error)), nil)
        }
    }

    private static func makeLog(
        _ store: TrackingStore, _ source: RawSource
    ) throws(TrackingFault) -> IntentLogFile {
        do throws(SystemFault) {
            return try IntentLogFile(creating: store.intentPath, diskBytes: source.sizeBytes)
        } catch {
            throw .system(path: store.intentPath, error)
        }
    }

    private static func identity(_ source: RawSource) throws(TrackingFault) -> SourceIdentity {
        guard source.type == .regular else {
            return SourceIdentity(
                path: source.path, sizeBytes: source.sizeBytes, inode: 0, changedNanoseconds: 0)
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

    /// The disk has been withdrawn and synced: its bits are exact.
    func closeTracking(_ disk: DiskID, _ source: RawSource) {
        guard case .store(var store) = state.withLock({ $0.tracking.removeValue(forKey: disk) })
        else { return }
        do throws(TrackingFault) {
            store.compressSealed()
            try store.close(source: try Self.identity(source))
        } catch {
            // The record still says "in use": the next start treats the stop as unclean.
            return
        }
    }

    /// Changes could not be recorded: no incremental backup may rely on them any more.
    func trackingIsLost(_ disk: DiskID) {
        let old = state.withLock { state in
            let old = state.tracking[disk]
            state.tracking[disk] = .unavailable(
                "changes could not be recorded durably: its checkpoints are given up")
            return old
        }
        if case .store(let store) = old { TrackingStore.giveUp(directory: store.directory) }
    }

    func trackingStatus(_ disk: DiskID) -> TrackingStatus? {
        switch state.withLock({ $0.tracking[disk] }) {
        case nil: nil
        case .unavailable(let text):
            TrackingStatus(
                granularityBytes: 0, checkpoints: [], dirtyBytes: 0, recoveredBytes: 0,
                problem: text)
        case .store(let store):
            TrackingStatus(
                granularityBytes: store.record.granularityBytes,
                checkpoints: store.record.chain.checkpoints,
                dirtyBytes: min(
                    UInt64(store.recording.dirtyCount) << store.granularityShift,
                    store.record.source.sizeBytes),
                recoveredBytes: store.recoveredBytes, problem: store.problem)
        }
    }

    /// The store of a tracked disk, or why there is none.
    func store(_ disk: DiskID) -> Result<(LiveExport, TrackingStore), ServerFault> {
        let (export, tracking) = state.withLock { ($0.disks[disk], $0.tracking[disk]) }
        guard let export else { return .failure(.unknownDisk) }
        switch tracking {
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
        case .unknownCheckpoint(let name): "there is no checkpoint '\(name)'"
        case .checkpointExists(let name): "checkpoint '\(name)' exists already"
        case .damagedLayer(let path, let detail): "'\(path)' is damaged: \(detail)"
        }
    }
}
