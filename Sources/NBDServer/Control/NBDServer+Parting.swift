import BoundedCalls
import Disk
import ServerInterface
import SystemLayer
import TrackingFiles

/// The end of a disk that nobody uses any more.
extension NBDServer {
    /// Syncs the source, then marks its bits as exact, then closes it: each where it may hang
    /// without hanging others.
    ///
    /// When the sync is not over in time there is no mark, and the next start treats the stop as
    /// unclean. When it fails the disk has lost writes, and no bit tells which: its checkpoints are
    /// given up.
    func close(
        _ parting: Parting<LiveExport?>, _ disk: DiskID, _ leaving: Leaving, _ limit: Int32
    ) async -> Result<Bool, ServerFault> {
        let place = StoragePlace.of(leaving.path)
        let doubt = doubt(disk)
        let ended = await storage.run(
            at: place, what: "the sync of '\(leaving.path)'", .end(milliseconds: limit),
            late: { _ in _ = parting.take() }
        ) { () -> Result<LastSync, ServerFault> in
            // What it ends with may be heard by nobody: the process may be gone by then.
            doubt?.say(syncHangs: true)
            let end = Self.sync(parting)
            // Nobody may wait for it any more. The source is locked until this is said: no next
            // server believes the record before.
            if case .failed(_, isLoss: true) = end, let doubt {
                self.distrustTracking(doubt)
            } else {
                doubt?.say(syncHangs: false)
            }
            return .success(end)
        }
        let remote = await letGo(parting, ended, leaving)
        _ = await storage.run(
            at: .tracking, what: StoragePlace.tracking.text, .end(milliseconds: nil)
        ) { () -> Result<Bool, ServerFault> in
            if case .success(.synced) = ended, remote.isKnown,
                let source = parting.look({ $0?.source }) ?? nil
            {
                self.closeTracking(disk, source, remote.state)
            } else {
                self.abandonTracking(disk)
            }
            return .success(true)
        }
        // Whatever has not been closed in order is left as after a kill.
        if case .failure(.timedOut) = ended {
            dropTracking(disk, mayBeDoubted: true)
            return ended.map { _ in true }
        }
        dropTracking(disk)
        // To close a file may write what is left of it.
        _ = await storage.run(at: place, what: "'\(leaving.path)'", .end(milliseconds: limit)) {
            _ = parting.take()
            return Result<Bool, ServerFault>.success(true)
        }
        if case .success(.failed(let fault, _)) = ended { return .failure(fault) }
        return ended.map { _ in true }
    }

    /// How a disk's last sync has ended.
    private enum LastSync: Sendable {
        case synced
        /// The disk is read-only.
        case notNeeded
        /// `isLoss`: writes that had succeeded are lost; otherwise it could not be made.
        case failed(ServerFault, isLoss: Bool)
    }

    private static func sync(_ parting: Parting<LiveExport?>) -> LastSync {
        guard let source = parting.look({ $0?.source }) ?? nil, !source.isReadOnly else {
            return .notNeeded
        }
        do throws(SystemFault) {
            try source.sync()
            return .synced
        } catch {
            return .failed(
                .sourceUnusable(path: source.path, detail: "\(error.call): \(error.errorText)"),
                isLoss: source.hasLostWrites)
        }
    }

    /// What is known of the files behind a source, now that they will not change.
    private struct Left: Sendable {
        var isKnown = true
        /// Of a remote source.
        var state: RemoteState?
    }

    /// Ends what serves a remote source that was synced; beside other disks' syncs, which must not
    /// wait for it.
    private func letGo(
        _ parting: Parting<LiveExport?>, _ ended: Result<LastSync, ServerFault>, _ leaving: Leaving
    ) async -> Left {
        guard case .success(.synced) = ended,
            let remote = parting.look({ $0?.source.remote }) ?? nil
        else { return Left() }
        let closed = await storage.run(
            at: .disks, what: "the program that serves '\(leaving.path)'",
            .end(milliseconds: Limits.adapterEndMilliseconds)
        ) { () -> Result<RemoteState?, ServerFault> in
            .success(remote.close(milliseconds: Limits.adapterEndMilliseconds))
        }
        guard case .success(let state?) = closed else { return Left(isKnown: false) }
        return Left(state: state)
    }
}
