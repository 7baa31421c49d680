import Disk
import NBDProtocol
package import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// Checkpoints of disks.
extension NBDServer {
    /// Makes a checkpoint on several disks at one instant; all of them or none.
    package func createCheckpoint(
        _ configuration: CheckpointConfiguration
    ) async throws(ServerFault) {
        _ = try await onDisks(Set(configuration.disks)) { self.create(configuration) }.get()
        // What was written before the instant is to outlive an upstream that is started anew while
        // no server has it.
        let exports = state.withLock { state in configuration.disks.compactMap { state.disks[$0] } }
        for export in exports { export.source.remote?.beginFlush() }
        compressLater(configuration.disks)
    }

    /// Takes a checkpoint out of a disk's chain; what it recorded goes to the one before.
    package func deleteCheckpoint(_ name: String, disk: DiskID) async throws(ServerFault) {
        _ = try await onDisks([disk]) {
            DeleteCheckpointCall(name, disk, self).run()
        }.get()
    }

    /// Everything written since a checkpoint, up to now; at most `extentLimit` extents are listed.
    package func dirtyReport(
        since checkpoint: String, disk: DiskID, extentLimit: Int
    ) async throws(ServerFault) -> DirtyReport {
        try await onDisks([disk]) { self.report(checkpoint, disk, extentLimit) }.get()
    }

    // MARK: By a call that owns the disks

    private func create(_ configuration: CheckpointConfiguration) -> Result<Bool, ServerFault> {
        var instant = Instant()
        if let fault = prepare(configuration, &instant) {
            abandon(instant.swaps)
            return .failure(fault)
        }
        return DurableInstantCall(instant, checkpoint: configuration.name, self).run().map { _ in
            true
        }
    }

    /// Makes the layers that a checkpoint's disks will record in; on a fault those made are listed.
    func prepare(
        _ configuration: CheckpointConfiguration, _ instant: inout Instant
    ) -> ServerFault? {
        for disk in configuration.disks {
            let found = store(disk)
            guard case .success(let (export, store)) = found else {
                if case .failure(let fault) = found { return fault }
                return .unknownDisk
            }
            if store.record.chain.checkpoints.contains(configuration.name) {
                return .checkpointExists(
                    checkpoint: configuration.name, export: export.description.name)
            }
            do throws(TrackingFault) {
                instant.swaps.append(
                    RecordingSwap(
                        disk: disk, homeRing: export.homeRing, old: store.recording,
                        next: try store.prepareNext()))
            } catch {
                return .notTracked(export: export.description.name, detail: Self.text(error))
            }
        }
        return nil
    }

    /// Gives up layers that no ring records in.
    ///
    /// One that a ring may still record in is left: the next start adds what it holds.
    func abandon(_ swaps: [RecordingSwap]) {
        for swap in swaps {
            if case .success(let (_, store)) = store(swap.disk) { store.abandon(swap.next) }
        }
    }

    /// Makes a checkpoint durable whose instant has passed.
    ///
    /// On a fault no disk has it: those that had are taken back, and the caller undoes the swaps.
    func seal(_ name: String, _ swaps: [RecordingSwap]) -> ServerFault? {
        var sealed: [(RecordingSwap, TrackingStore)] = []
        for swap in swaps {
            let found = store(swap.disk)
            guard case .success(let (export, before)) = found else {
                if case .failure(let fault) = found { return unseal(sealed, fault) }
                return unseal(sealed, .unknownDisk)
            }
            var store = before
            do throws(TrackingFault) {
                try store.seal(checkpoint: name, next: swap.next)
            } catch {
                return unseal(
                    sealed,
                    .notTracked(export: export.description.name, detail: Self.text(error)))
            }
            guard keep(store, swap.disk) else {
                return unseal(
                    sealed,
                    .notTracked(export: export.description.name, detail: Self.text(.lost)))
            }
            sealed.append((swap, before))
        }
        for swap in swaps { shared.mailboxes[swap.homeRing].post(.sealedDurably(swap.disk)) }
        return nil
    }

    private func unseal(
        _ sealed: [(RecordingSwap, TrackingStore)], _ fault: ServerFault
    ) -> ServerFault {
        for (swap, before) in sealed {
            // The old layer goes on and gets the new one's bits, so the old record is right again.
            do throws(TrackingFault) {
                try before.rewrite()
                _ = keep(before, swap.disk)
            } catch {
                // Its loss has been told.
                if error == .lost { continue }
                trackingIsLost(
                    swap.disk, "a checkpoint could not be taken back: \(Self.text(error))")
            }
        }
        return fault
    }

    /// Takes over what a disk's record says by now; false when its tracking was lost meanwhile,
    /// which no later success mends.
    func keep(_ store: TrackingStore, _ disk: DiskID) -> Bool {
        state.withLock { state in
            guard case .store = state.tracking[disk] else { return false }
            state.tracking[disk] = .store(store)
            return true
        }
    }

    private func report(
        _ checkpoint: String, _ disk: DiskID, _ limit: Int
    ) -> Result<DirtyReport, ServerFault> {
        let found = store(disk)
        guard case .success(let (export, store)) = found else {
            if case .failure(let fault) = found { return .failure(fault) }
            return .failure(.unknownDisk)
        }
        let box = BitmapBox()
        let taken = RingQuestion(shared.mailboxes[export.homeRing]) {
            .snapshotRecording(disk, box, $0)
        }
        guard taken.run() == .done else {
            return .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
        }
        do throws(TrackingFault) {
            guard let bits = box.bitmap else { throw .unknownCheckpoint(checkpoint) }
            let union = try store.union(since: checkpoint, recording: bits)
            return .success(
                Self.report(union, store.granularityShift, export.source.sizeBytes, limit))
        } catch {
            return .failure(
                .checkpointUnusable(
                    checkpoint: checkpoint, target: export.description.name,
                    detail: Self.text(error)))
        }
    }

    private static func report(
        _ bitmap: DirtyBitmap, _ shift: UInt64, _ sizeBytes: UInt64, _ limit: Int
    ) -> DirtyReport {
        var extents: [DirtyExtent] = []
        var bytes: UInt64 = 0
        var block = 0
        while let start = bitmap.firstBlock(from: block, dirty: true) {
            let end = bitmap.firstBlock(from: start, dirty: false) ?? bitmap.blockCount
            let offset = UInt64(start) << shift
            let length = min(UInt64(end) << shift, sizeBytes) - offset
            bytes += length
            if extents.count < limit {
                extents.append(DirtyExtent(offset: offset, length: length))
            }
            block = end
            if block >= bitmap.blockCount { break }
        }
        return DirtyReport(dirtyBytes: bytes, extents: extents)
    }

    /// Compresses sealed layers when the call that sealed them has returned.
    func compressLater(_ disks: [DiskID]) {
        for disk in disks {
            later(on: disk) {
                if case .success(let (_, store)) = self.store(disk) { store.compressSealed() }
            }
        }
    }
}
