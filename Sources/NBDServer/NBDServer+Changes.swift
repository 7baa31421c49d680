import Bitmap
import Disk
import IORing
import NBDProtocol
import Synchronization

/// Changes of a disk that is served: it goes while nobody uses it, or becomes larger.
extension NBDServer {
    /// Detaches a disk unless somebody is connected to its live export.
    ///
    /// Nobody is dropped: whoever comes at the same time is counted, or finds no export.
    package func detachDiskIfUnused(_ disk: DiskID) async throws(ServerFault) {
        _ = try await onControlThread { self.detachUnused(disk) }.get()
    }

    /// Makes a disk larger while it is served; returns its size in bytes.
    ///
    /// A regular file is extended; a device must have grown already. Without `sizeBytes` the disk
    /// gets the size that its source has by now. Connections that are there go on with the size they
    /// were told, new ones are told the new size. What is new counts as changed.
    ///
    /// On a fault nothing has changed, but for a file's length that could not be made durable, which
    /// the fault says.
    package func growDisk(
        _ disk: DiskID, sizeBytes: UInt64?
    ) async throws(ServerFault) -> UInt64 {
        let grown = try await onControlThread { self.grow(disk, sizeBytes) }.get()
        if let source = grown.extended { try await makeDurable(source) }
        return grown.sizeBytes
    }

    // MARK: On the control thread

    private func detachUnused(_ disk: DiskID) -> Result<Bool, ServerFault> {
        guard let export = state.withLock({ $0.disks[disk] }) else {
            return .failure(.unknownDisk)
        }
        let name = export.description.name
        live.remove(name: name)
        // A ring that had found the export has counted its client when it answers this.
        let isSettled = closeConnections(of: ExportID.next(), gracefully: true)
        let clients = export.clientCount.load(ordering: .relaxed)
        guard isSettled, clients == 0 else {
            _ = live.add(.live(export))
            return .failure(
                isSettled ? .diskInUse(name: name, clients: clients) : .diskBusy(name: name))
        }
        return detach(disk)
    }

    /// What a call to `grow` has done.
    private struct Grown: Sendable {
        let sizeBytes: UInt64
        /// The source, when its file was extended.
        var extended: RawSource?
    }

    private func grow(_ disk: DiskID, _ wanted: UInt64?) -> Result<Grown, ServerFault> {
        guard let export = state.withLock({ $0.disks[disk] }) else {
            return .failure(.unknownDisk)
        }
        let name = export.description.name
        let isInJob = state.withLock { state in
            state.jobs.values.contains { $0.exports.contains { $0.disk == disk } }
        }
        guard !isInJob else {
            return .failure(
                .resizeRefused(name: name, detail: "a backup job runs on it, end that first"))
        }
        let source = export.source
        do throws(SourceFault) {
            let found = try source.measure()
            let sizeBytes = wanted ?? found
            guard sizeBytes != source.sizeBytes else {
                return .success(Grown(sizeBytes: sizeBytes))
            }
            if let detail = refusal(of: sizeBytes, found: found, source, isTracked(disk)) {
                return .failure(.resizeRefused(name: name, detail: detail))
            }
            let isExtended = sizeBytes > found
            if isExtended { try Self.extend(source, to: sizeBytes) }
            if let fault = enlarge(disk, export, to: sizeBytes) {
                return .failure(isExtended ? takeBack(source, to: found, after: fault) : fault)
            }
            return .success(Grown(sizeBytes: sizeBytes, extended: isExtended ? source : nil))
        } catch {
            return .failure(Self.fault(source.path, error))
        }
    }

    private func isTracked(_ disk: DiskID) -> Bool {
        if case .success = store(disk) { true } else { false }
    }

    /// Why a disk cannot get this size, or nil when it can.
    private func refusal(
        of sizeBytes: UInt64, found: UInt64, _ source: RawSource, _ isTracked: Bool
    ) -> String? {
        if sizeBytes < source.sizeBytes {
            return "it has \(source.sizeBytes) bytes and cannot shrink to \(sizeBytes)"
        }
        if sizeBytes < found {
            return "its source has \(found) bytes already: take them all (--capacity)"
        }
        if sizeBytes > found, source.type != .regular {
            return "its device has \(found) bytes: grow the device to \(sizeBytes) first"
        }
        if sizeBytes > found, source.isReadOnly {
            return "it is read-only, and its file has \(found) bytes"
        }
        guard sizeBytes % UInt64(source.alignment) == 0 else {
            return "\(sizeBytes) bytes are not a multiple of \(source.alignment), which "
                + "cache='none' needs"
        }
        let most =
            isTracked
            ? min(RawSource.sizeBytesMax, TrackingStore.growthBytesMax) : RawSource.sizeBytesMax
        return sizeBytes > most ? "\(most) bytes are the most that can be served" : nil
    }

    private static func extend(_ source: RawSource, to sizeBytes: UInt64) throws(SourceFault) {
        do throws(SystemFault) {
            try source.setLength(sizeBytes)
        } catch {
            throw .system(error)
        }
    }

    /// The disk stays as it was: so does its file, where nobody has seen what was added.
    private func takeBack(
        _ source: RawSource, to sizeBytes: UInt64, after fault: ServerFault
    ) -> ServerFault {
        do throws(SystemFault) {
            try source.setLength(sizeBytes)
            return fault
        } catch {
            return .sourceUnusable(
                path: source.path,
                detail: "it was extended, the disk could not be resized, and it cannot be shortened"
                    + " to \(sizeBytes) bytes again: \(error.errorText)")
        }
    }

    private func enlarge(
        _ disk: DiskID, _ export: LiveExport, to sizeBytes: UInt64
    ) -> ServerFault? {
        let name = export.description.name
        var tracking: TrackingStore.Growth?
        var seed: TrackingSeed?
        if case .success(let (_, store)) = store(disk) {
            do throws(TrackingFault) {
                let growth = try store.grown(to: sizeBytes)
                tracking = growth
                seed = TrackingSeed(
                    recording: growth.store.recording, log: try Self.fullLog(store, sizeBytes),
                    directory: store.directory)
            } catch {
                return .resizeRefused(
                    name: name, detail: "its change tracking cannot grow: \(Self.text(error))")
            }
        }
        let growth = DiskGrowth(
            sizeBytes: sizeBytes, tracking: seed, aheadBlocks: tracking?.aheadBlocks ?? 0,
            aheadStart: tracking?.aheadStart ?? sizeBytes)
        if let fault = hand(growth, to: export, disk) { return fault }
        // The ring is ready for it: now it may be told.
        if let tracking { keep(tracking.store, disk) }
        export.source.grow(to: sizeBytes)
        if let tracking { makeDurable(tracking.store, disk) }
        return nil
    }

    /// A log that marks every region: it covers whatever the old one marks, now and until the ring
    /// uses this one.
    private static func fullLog(
        _ store: TrackingStore, _ sizeBytes: UInt64
    ) throws(TrackingFault) -> IntentLogFile {
        do throws(SystemFault) {
            return try IntentLogFile(
                creating: store.intentPath, diskBytes: sizeBytes, isAllMarked: true)
        } catch {
            throw .system(path: store.intentPath, error)
        }
    }

    /// The home ring takes the new size between two changes.
    private func hand(
        _ growth: DiskGrowth, to export: LiveExport, _ disk: DiskID
    ) -> ServerFault? {
        let ring = shared.mailboxes[export.homeRing]
        for _ in 0..<Limits.growthAttempts {
            let held = Latch(count: 1)
            ring.post(.hold(disk, held))
            let isQuiet = held.wait(milliseconds: Limits.holdMilliseconds)
            let outcome = Outcome()
            if isQuiet {
                let done = Latch(count: 1)
                ring.post(.growDisk(disk, growth, outcome, done))
                _ = done.wait(milliseconds: -1)
            }
            ring.post(.release(disk))
            if outcome.succeeded.load(ordering: .acquiring) { return nil }
            guard isQuiet else { break }
            // The write-intent log is being written, or cleared: a matter of milliseconds.
            _ = Latch(count: 1).wait(milliseconds: Limits.growthPauseMilliseconds)
        }
        return .holdTimedOut(milliseconds: UInt64(Limits.holdMilliseconds))
    }

    /// The new part's bits first, then the size: after a crash in between the record's old size
    /// makes the new part dirty.
    private func makeDurable(_ store: TrackingStore, _ disk: DiskID) {
        do throws(TrackingFault) {
            do throws(SystemFault) {
                try store.recording.sync()
            } catch {
                throw .system(path: store.directory, error)
            }
            try store.rewrite()
        } catch {
            // A sync that failed makes every later one worthless.
            shared.emit(.trackingLost(disk: disk))
        }
    }

    /// Waits on a thread of its own until a file's new length is durable.
    private func makeDurable(_ source: RawSource) async throws(ServerFault) {
        var thread: WorkerThread?
        let failure = await withCheckedContinuation {
            (continuation: CheckedContinuation<SystemFault?, Never>) in
            let work: @Sendable () -> Void = {
                do throws(SystemFault) {
                    try source.sync()
                    continuation.resume(returning: nil)
                } catch {
                    continuation.resume(returning: error)
                }
            }
            do throws(SystemFault) {
                thread = try WorkerThread(name: "nbdpull-resize", body: work)
            } catch {
                continuation.resume(returning: error)
            }
        }
        // It has nothing left to do.
        thread?.join()
        guard let failure else { return }
        throw .sourceUnusable(
            path: source.path,
            detail: "the disk has grown, but its new length may not be durable: \(failure.call):"
                + " \(failure.errorText)")
    }
}
