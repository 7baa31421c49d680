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
        try await onControlThread { self.begin(configuration) }.get()
    }

    /// A momentary look at a job.
    package func jobReport(id: String) async throws(ServerFault) -> JobReport {
        guard let job = state.withLock({ $0.jobs[id] }) else { throw .unknownJob(id: id) }
        return job.report
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
        let scope = ExportScope(jobID: configuration.id)
        var exports: [BackupExport] = []
        let fault = makeExports(configuration, scope, &exports)
        if let fault { return abandon(exports, fault) }
        switch open(configuration.endpoint, scope: scope) {
        case .failure(let fault): return abandon(exports, fault)
        case .success(let opened):
            switch fixInstant(exports) {
            case .failure(let fault):
                opened.listener.close()
                return abandon(exports, fault)
            case .success(let hold):
                return publish(configuration.id, exports, scope, opened, hold)
            }
        }
    }

    private func abandon(
        _ exports: [BackupExport], _ fault: ServerFault
    ) -> Result<JobStarted, ServerFault> {
        for export in exports { export.scratch.remove() }
        return .failure(fault)
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
                scratch = try Self.openScratch(disk.scratch, geometry)
            } catch {
                return Self.fault(disk, error)
            }
            do throws(SystemFault) {
                let export = try BackupExport(
                    disk, jobID: configuration.id, live: live, scratch: scratch,
                    holdLimitMilliseconds: configuration.holdLimitMilliseconds)
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
        _ scratch: ScratchConfiguration, _ geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        switch (scratch.kind, scratch.reuseExternal) {
        case (.block, _): try .device(path: scratch.path, geometry: geometry)
        case (.file, true): try .reuse(path: scratch.path, geometry: geometry)
        case (.file, false): try .create(path: scratch.path, geometry: geometry)
        }
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

    /// Holds the writes of all disks, attaches the job while none is in flight, lets them go.
    ///
    /// The instant lies between the last disk's report and the first release, so all disks share
    /// it. Returns how long writes were held, in nanoseconds.
    private func fixInstant(_ exports: [BackupExport]) -> Result<UInt64, ServerFault> {
        let start = MonotonicClock.now()
        let held = Latch(count: exports.count)
        for export in exports {
            shared.mailboxes[export.homeRing].post(.hold(export.disk, held))
        }
        guard held.wait(milliseconds: Limits.holdMilliseconds) else {
            releaseAll(exports)
            return .failure(.holdTimedOut(milliseconds: UInt64(Limits.holdMilliseconds)))
        }
        let attached = Latch(count: exports.count)
        let results = exports.map { _ in Outcome() }
        for (export, result) in zip(exports, results) {
            shared.mailboxes[export.homeRing].post(.attachJob(export, result, attached))
        }
        _ = attached.wait(milliseconds: -1)
        releaseAll(exports)
        let hold = MonotonicClock.now() - start
        if results.allSatisfy({ $0.succeeded.load(ordering: .acquiring) }) {
            return .success(hold)
        }
        detachAll(exports)
        if results.contains(where: { $0.lackedBuffers.load(ordering: .acquiring) }) {
            return .failure(
                .limitReached(
                    what: "disks of one ring with a job at once",
                    limit: Limits.arenaBytes / 2 / (HomeDisk.copyPages * BufferArena.pageBytes)))
        }
        return .failure(
            .limitReached(what: "jobs at once on a disk", limit: CopyBeforeWrite.jobsMax))
    }

    private func releaseAll(_ exports: [BackupExport]) {
        for export in exports { shared.mailboxes[export.homeRing].post(.release(export.disk)) }
    }

    private func publish(
        _ id: String, _ exports: [BackupExport], _ scope: ExportScope, _ opened: OpenedListener,
        _ hold: UInt64
    ) -> Result<JobStarted, ServerFault> {
        let job = RunningJob(
            id: id, exports: exports, scope: scope, listener: opened.listener,
            holdNanoseconds: hold)
        state.withLock { $0.jobs[id] = job }
        shared.mailboxes[0].post(.addListener(opened.listener))
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
        let report = job.report
        // Readers are told before the disks stop preserving: nothing read after that is handed out.
        detachAll(job.exports)
        for export in job.exports { closeConnections(of: export.id, gracefully: false) }
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
    private func detachAll(_ exports: [BackupExport]) {
        let detached = Latch(count: exports.count)
        for export in exports {
            shared.mailboxes[export.homeRing].post(.detachJob(export, detached))
        }
        _ = detached.wait(milliseconds: Limits.drainMilliseconds)
    }
}
