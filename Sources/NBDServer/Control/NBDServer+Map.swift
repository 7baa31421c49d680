import BoundedCalls
import Disk
import ScratchFiles
package import ServerInterface
import Synchronization
import Tracking
import TrackingFiles

/// Disks as people are shown them: no ring is asked, and nothing waits for who looks.
extension NBDServer {
    /// Connections that were closed at once, because a limit of connections was reached.
    package var refusedConnections: UInt64 { shared.counts.refused.load(ordering: .relaxed) }

    /// What a disk looks like, in cells.
    ///
    /// One thread for each mount draws all pictures; a storage that does not answer costs that
    /// thread.
    package func diskMap(_ disk: DiskID) async throws(ServerFault) -> DiskMap {
        guard let path = state.withLock({ $0.disks[disk]?.source.path }) else {
            throw .unknownDisk
        }
        return try await storage.run(
            at: .picture(StoragePlace.of(path).text), what: "'\(path)'",
            .begin(milliseconds: Limits.pictureMilliseconds)
        ) { self.draw(disk) }.get()
    }

    // On a thread that may hang: it may be the last to let go of a file.
    private func draw(_ disk: DiskID) -> Result<DiskMap, ServerFault> {
        let (found, tracking, jobs) = state.withLock { state in
            (
                state.disks[disk], state.tracking[disk],
                state.jobs.values.flatMap(\.exports).filter { $0.disk == disk }
            )
        }
        guard let export = found else { return .failure(.unknownDisk) }
        var map = DiskMap(sizeBytes: export.source.sizeBytes)
        map.data = export.picture.data(of: export.source, map.geometry)
        if case .store(let store) = tracking {
            map.checkpoints = store.record.chain.checkpoints
            map.changed = export.picture.changed(store, map.geometry)
        }
        map.jobs = jobs.sorted { $0.jobID < $1.jobID }.map { export in
            export.cells.map(export.jobID, export.ledger.view, on: map.geometry)
        }
        return .success(map)
    }
}
