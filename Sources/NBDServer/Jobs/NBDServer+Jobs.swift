import Bitmap
import Disk
import IORing
import NBDProtocol
import Scratch
import Synchronization

/// Jobs begin and end.
extension NBDServer {
    /// Validates everything, creates scratch, binds the listener, then fixes one instant for all
    /// disks and serves the exports.
    ///
    /// A fault leaves nothing behind: no file, no socket, no job.
    package func beginJob(
        _ configuration: JobConfiguration
    ) async throws(ServerFault) -> JobStarted {
        let started = try await onControlThread { self.begin(configuration) }.get()
        compressLater(configuration.checkpoint?.disks ?? [])
        return started
    }

    /// A momentary look at a job.
    package func jobReport(id: String) async throws(ServerFault) -> JobReport {
        guard let job = state.withLock({ $0.jobs[id] }) else { throw .unknownJob(id: id) }
        return job.report(shared)
    }

    /// Withdraws the exports, disconnects the clients, stops copying, removes scratch; returns the
    /// last figures.
    package func endJob(id: String) async throws(ServerFault) -> JobReport {
        try await onControlThread { self.end(jobID: id) }.get()
    }

    // MARK: Beginning, on the control thread

    private func begin(_ configuration: JobConfiguration) -> Result<JobStarted, ServerFault> {
        guard !state.withLock({ $0.isStopping }) else { return .failure(.shuttingDown) }
        guard state.withLock({ $0.jobs[configuration.id] }) == nil else {
            return .failure(.exportNameTaken(name: configuration.id))
        }
        guard Set(configuration.disks.map(\.disk)).count == configuration.disks.count else {
            return .failure(.diskBusy(name: "the same disk twice in job \(configuration.id)"))
        }
        let scope = ExportScope(jobID: configuration.id, domain: configuration.domain)
        var instant = Instant()
        if let fault = prepare(configuration, scope, &instant) { return abandon(instant, fault) }
        switch open(configuration.endpoint, scope: scope, security: configuration.security) {
        case .failure(let fault): return abandon(instant, fault)
        case .success(let opened):
            switch fix(instant, for: configuration) {
            case .failure(let fault):
                opened.listener.close()
                return abandon(instant, fault)
            case .success(let hold):
                return publish(configuration.id, instant.exports, scope, opened, hold)
            }
        }
    }

    private func abandon(_ instant: Instant, _ fault: ServerFault) -> Result<
        JobStarted, ServerFault
    > {
        for export in instant.exports { export.scratch.remove() }
        abandon(instant.swaps)
        return .failure(fault)
    }

    /// Everything that can be made before the instant; on a fault, `instant` holds what was made.
    private func prepare(
        _ configuration: JobConfiguration, _ scope: ExportScope, _ instant: inout Instant
    ) -> ServerFault? {
        if let fault = readBases(configuration, &instant) { return fault }
        if let fault = makeExports(configuration, scope, &instant.exports) { return fault }
        if let checkpoint = configuration.checkpoint,
            let fault = prepare(checkpoint, &instant)
        {
            return fault
        }
        let swapped = Set(instant.swaps.map(\.disk))
        for export in instant.exports
        where !export.bitmaps.isEmpty && !swapped.contains(export.disk) {
            instant.snapshots.append(
                RecordingSnapshot(disk: export.disk, homeRing: export.homeRing))
        }
        return nil
    }

    /// Reads the sealed layers since every base checkpoint: found out before anything is made whether
    /// they are there and whole.
    private func readBases(
        _ configuration: JobConfiguration, _ instant: inout Instant
    ) -> ServerFault? {
        for disk in configuration.disks {
            guard let incremental = disk.incremental else { continue }
            let found = store(disk.disk)
            guard case .success(let (_, store)) = found else {
                if case .failure(.notTracked(_, let detail)) = found {
                    return .checkpointUnusable(
                        checkpoint: incremental.checkpoint, target: disk.target, detail: detail)
                }
                return .unknownDisk
            }
            do throws(TrackingFault) {
                instant.sealedBits[disk.disk, default: [:]][incremental.checkpoint] =
                    try store.sealedUnion(since: incremental.checkpoint)
            } catch {
                return .checkpointUnusable(
                    checkpoint: incremental.checkpoint, target: disk.target,
                    detail: Self.text(error))
            }
        }
        return nil
    }

    /// Fixes the instant, freezes the bitmaps, makes the checkpoint durable; on a fault nothing has
    /// happened.
    private func fix(
        _ instant: Instant, for configuration: JobConfiguration
    ) -> Result<UInt64, ServerFault> {
        let hold: UInt64
        switch fix(instant) {
        case .failure(let fault): return .failure(fault)
        case .success(let nanoseconds): hold = nanoseconds
        }
        if let fault = freeze(instant) {
            undo(instant)
            return .failure(fault)
        }
        if let checkpoint = configuration.checkpoint,
            let fault = seal(checkpoint.name, instant.swaps)
        {
            undo(instant)
            return .failure(fault)
        }
        return .success(hold)
    }

    /// Gives every incremental export its bitmaps: the sealed layers since each one's base, and the
    /// bits that were recorded up to the instant.
    private func freeze(_ instant: Instant) -> ServerFault? {
        for export in instant.exports where !export.bitmaps.isEmpty {
            let bits =
                instant.swaps.first { $0.disk == export.disk }?.old.snapshot()
                ?? instant.snapshots.first { $0.disk == export.disk }?.box.bitmap
            for dirty in export.bitmaps {
                guard var union = instant.sealedBits[export.disk]?[dirty.checkpoint], let bits,
                    union.blockCount == bits.blockCount
                else { return .unknownDisk }
                union.formUnion(bits)
                dirty.freeze(union)
            }
        }
        return nil
    }

    /// Makes every export with its scratch; on a fault, `exports` holds those made before it.
    private func makeExports(
        _ configuration: JobConfiguration, _ scope: ExportScope, _ exports: inout [BackupExport]
    ) -> ServerFault? {
        for disk in configuration.disks {
            guard let live = state.withLock({ $0.disks[disk.disk] }) else { return .unknownDisk }
            let geometry = ClusterGeometry(sizeBytes: live.source.sizeBytes)
            let scratch: ScratchStorage
            do throws(ScratchFault) {
                scratch = try Self.openScratch(disk.scratch, geometry, readers: readers)
            } catch {
                return Self.fault(disk, error)
            }
            let reserved: UInt64
            switch reserve(scratch) {
            case .failure(let fault):
                scratch.remove()
                return fault
            case .success(let bytes): reserved = bytes
            }
            do throws(SystemFault) {
                var shift: UInt64 = 0
                if case .success(let (_, store)) = store(disk.disk) {
                    shift = store.granularityShift
                }
                let export = try BackupExport(
                    disk, jobID: configuration.id, live: live, scratch: scratch,
                    home: shared.mailboxes[live.homeRing], reservedBytes: reserved,
                    granularityShift: shift,
                    holdLimitMilliseconds: configuration.holdLimitMilliseconds,
                    mayRelease: configuration.clientRelease)
                exports.append(export)
                guard scope.add(.backup(export)) else {
                    return .exportNameTaken(name: disk.exportName)
                }
            } catch {
                scratch.remove()
                return .systemUnsupported(
                    detail: "no memory for the ledger of '\(disk.target)': \(error.errorText)")
            }
        }
        return nil
    }

    private static func openScratch(
        _ scratch: ScratchConfiguration, _ geometry: ClusterGeometry, readers: Int
    ) throws(ScratchFault) -> ScratchStorage {
        switch (scratch.kind, scratch.reuseExternal) {
        case (.block, _):
            try .device(path: scratch.path, geometry: geometry, readers: readers)
        case (.file, true):
            try .reuse(path: scratch.path, geometry: geometry, readers: readers)
        case (.file, false):
            try .create(path: scratch.path, geometry: geometry, readers: readers)
        }
    }

    /// Threads that read scratch.
    private var readers: Int { shared.layout.rings(for: .backups).count }

    /// Room that scratch leaves on its file system: some where a machine's disk lies there, too.
    private func reserve(_ scratch: ScratchStorage) -> Result<UInt64, ServerFault> {
        guard let fileSystem = scratch.fileSystem, let space = FileCalls.space(scratch.raw),
            let other = state.withLock({ state in
                state.disks.values.first {
                    $0.fileSystem == fileSystem && !$0.source.isReadOnly
                }
            })
        else { return .success(0) }
        let kept = shared.configuration.scratchReserve.bytes(of: space.totalBytes)
        guard space.freeBytes > kept else {
            return .failure(
                .scratchUnusable(
                    path: scratch.path,
                    detail: "its file system also holds disk '\(other.description.name)': of its"
                        + " \(space.freeBytes) free bytes \(kept) are kept for machines"
                        + " (--scratch-reserve); put scratch elsewhere (<scratch>, --scratch-dir)"))
        }
        return .success(kept)
    }

    private static func fault(_ disk: JobDiskConfiguration, _ fault: ScratchFault) -> ServerFault {
        switch fault {
        case .exists: .scratchExists(path: disk.scratch.path, target: disk.target)
        case .cannotCreate(let fault):
            .scratchNotCreated(path: disk.scratch.path, errorText: fault.errorText)
        case .unusable(let fault):
            .scratchUnusable(path: disk.scratch.path, detail: detail(of: fault))
        case .tooSmall(let size):
            .scratchUnusable(
                path: disk.scratch.path,
                detail: "its \(size) bytes do not hold one cluster of"
                    + " \(ClusterGeometry.clusterBytes) bytes")
        }
    }

    private func publish(
        _ id: String, _ exports: [BackupExport], _ scope: ExportScope, _ opened: OpenedListener,
        _ hold: UInt64
    ) -> Result<JobStarted, ServerFault> {
        let job = RunningJob(
            id: id, exports: exports, scope: scope, listener: opened.listener,
            holdNanoseconds: hold)
        state.withLock { $0.jobs[id] = job }
        shared.watch.add(exports, shared)
        shared.acceptor(for: scope.duty).post(.addListener(opened.listener))
        let sizes = exports.map { ($0.target, $0.source.sizeBytes) }
        return .success(
            JobStarted(
                endpoint: opened.endpoint, holdNanoseconds: hold,
                diskSizes: Dictionary(sizes) { first, _ in first }))
    }

    // MARK: Ending, on the control thread

    func end(jobID: String) -> Result<JobReport, ServerFault> {
        guard let job = state.withLock({ $0.jobs[jobID] }) else {
            return .failure(.unknownJob(id: jobID))
        }
        close(job.listener)
        job.scope.removeAll()
        let report = job.report(shared)
        // Readers are told before the disks stop preserving: nothing read after that is handed out.
        detachAll(job.exports)
        for export in job.exports { closeConnections(of: export.id, gracefully: false) }
        shared.watch.remove(job.exports)
        removeScratch(of: job.exports)
        state.withLock { _ = $0.jobs.removeValue(forKey: jobID) }
        return .success(report)
    }

    /// Deletes scratch on a thread of its own: a file system that hangs must not take the control
    /// thread with it, and the last reference goes there, so that no ring frees a large file.
    private func removeScratch(of exports: [BackupExport]) {
        let removed = Latch(count: 1)
        let work: @Sendable () -> Void = {
            for export in exports { export.scratch.remove() }
            removed.arrive()
        }
        do throws(SystemFault) {
            _ = try WorkerThread(name: "nbdpull-scratch", body: work)
            _ = removed.wait(milliseconds: Limits.removalMilliseconds)
        } catch {
            work()
        }
    }

    /// Closes the ledgers and waits, as long as limits allow, until nothing of the job is in
    /// flight.
    func detachAll(_ exports: [BackupExport]) {
        let detached = Latch(count: exports.count)
        for export in exports {
            shared.mailboxes[export.homeRing].post(.detachJob(export, detached))
        }
        _ = detached.wait(milliseconds: Limits.drainMilliseconds)
    }
}
