import Foundation
import NBDServer

/// What a client asks of `backup-begin`.
package struct BeginRequest: Sendable, Hashable {
    /// Libvirt's `<domainbackup>`, or nil: every disk with media that is not read-only, on a unix
    /// socket in the run directory.
    package var backupXML: String?
    package var checkpointXML: String?
    /// Scratch files exist already and are kept.
    package var reuseExternal: Bool
    /// Seconds after which the job ends by itself, as failed.
    package var timeToLiveSeconds: UInt64?

    package init(
        backupXML: String? = nil, checkpointXML: String? = nil, reuseExternal: Bool = false,
        timeToLiveSeconds: UInt64? = nil
    ) {
        self.backupXML = backupXML
        self.checkpointXML = checkpointXML
        self.reuseExternal = reuseExternal
        self.timeToLiveSeconds = timeToLiveSeconds
    }
}

extension JobManager {
    /// Begins a backup job; its exports are served when this returns.
    ///
    /// A refused begin leaves nothing behind.
    package func begin(
        domain name: String, _ request: BeginRequest
    ) async throws(ControlError) -> BegunJob {
        let parsed = try check(name, request)
        await retryFailedDisks(of: name)
        let id = UUID().uuidString.lowercased()
        let job = try reserve(id, domain: name, parsed, reuseExternal: request.reuseExternal)
        do throws(ControlError) {
            try state?.save(job.record)
            let configuration = try configuration(of: job)
            let started = try await startInEngine(configuration)
            jobs[id]?.started = started
        } catch {
            drop(id)
            throw error
        }
        do throws(ControlError) {
            try await finishBegin(id)
        } catch {
            _ = try? await engine.endJob(id: id)
            drop(id)
            throw error
        }
        return try await announce(id, timeToLiveSeconds: request.timeToLiveSeconds)
    }

    // Everything that can be refused without asking the engine, in the order a user meets it.
    private func check(
        _ name: String, _ request: BeginRequest
    ) throws(ControlError) -> BackupRequest? {
        guard !isStopping else { throw .serverStopping }
        _ = try domain(name)
        let parsed: BackupRequest? =
            if let xml = request.backupXML { try BackupRequest.parse(xml) } else { nil }
        if let xml = request.checkpointXML {
            _ = try CheckpointRequest.parse(xml)
            throw .checkpointsNotSupportedYet
        }
        if let seconds = request.timeToLiveSeconds {
            guard (1...Self.timeToLiveSecondsMax).contains(seconds) else {
                throw .invalidArgument(
                    what: "time to live \(seconds) s",
                    detail: "it must be between 1 and \(Self.timeToLiveSecondsMax) seconds")
            }
        }
        guard jobs.count < Self.jobsMax else { throw .limit("backup jobs", Self.jobsMax) }
        return parsed
    }

    // Makes the plan and enters the job, with no wait between: two begins never share a plan's
    // names.
    private func reserve(
        _ id: String, domain name: String, _ parsed: BackupRequest?, reuseExternal: Bool
    ) throws(ControlError) -> Job {
        guard !isStopping else { throw .serverStopping }
        let domain = try domain(name)
        let request = if let parsed { parsed } else { try defaultRequest(jobID: id) }
        let plan = try BackupPlan.make(
            request, domain: domain.definition, jobID: id, reuseExternal: reuseExternal,
            scratchSuffix: nextScratchSuffix(), firstIndex: nextDiskIndex)
        try PlaintextPolicy.check(plan.endpoint, allowPlaintext: settings.allowPlaintext)
        for disk in plan.disks where disk.participates {
            if case .failed(let reason) = domain.attachments[disk.target] {
                throw .diskUnavailable(domain: name, target: disk.target, reason: reason)
            }
        }
        nextDiskIndex += plan.disks.count
        let job = Job(id: id, domain: name, plan: plan, record: record(of: plan, domain: name))
        jobs[id] = job
        return job
    }

    private func defaultRequest(jobID: String) throws(ControlError) -> BackupRequest {
        var writer = XMLWriter()
        writer.element("domainbackup", [("mode", "pull")]) { root in
            root.empty(
                "server",
                [
                    ("transport", "unix"),
                    ("socket", "\(settings.runDirectory)/backup-\(jobID).sock"),
                ])
        }
        return try BackupRequest.parse(writer.text)
    }

    // Libvirt's suffix is the time in seconds; jobs within one second still need names of their
    // own.
    private func nextScratchSuffix() -> String {
        lastScratchSuffix = max(Int64(Date().timeIntervalSince1970), lastScratchSuffix + 1)
        return String(lastScratchSuffix)
    }

    // Written before anything is made, so that a crash at any point can be cleaned up after.
    private func record(of plan: BackupPlan, domain: String) -> StoredJob {
        let scratch = plan.disks.compactMap { disk -> StoredJob.Scratch? in
            guard disk.participates, let scratch = disk.scratch, scratch.kind == .file,
                !scratch.reuseExternal, SystemCalls.identity(of: scratch.path) == nil
            else { return nil }
            return StoredJob.Scratch(path: scratch.path)
        }
        var socketPath: String?
        if case .unix(let path, _) = plan.endpoint { socketPath = path }
        return StoredJob(
            id: plan.jobID, domain: domain, begun: Date(), scratch: scratch,
            socketPath: socketPath)
    }

    private func configuration(of job: Job) throws(ControlError) -> JobConfiguration {
        var ids: [String: DiskID] = [:]
        for (target, attachment) in domains[job.domain]?.attachments ?? [:] {
            if case .attached(let id) = attachment { ids[target] = id }
        }
        return try job.plan.jobConfiguration(
            diskIDs: ids, holdLimitMilliseconds: settings.holdLimitMilliseconds)
    }

    private func startInEngine(
        _ configuration: JobConfiguration
    ) async throws(ControlError) -> JobStarted {
        do {
            return try await engine.beginJob(configuration)
        } catch {
            throw controlError(from: error)
        }
    }

    private func finishBegin(_ id: String) async throws(ControlError) {
        guard var job = jobs[id], let started = job.started else { throw .jobNotFound(id) }
        if isStopping { throw .serverStopping }
        job.record.tempTotalBytes = started.diskSizes.values.reduce(0, +)
        for index in job.record.scratch.indices {
            job.record.scratch[index].identity =
                SystemCalls.identity(of: job.record.scratch[index].path)?.identity
        }
        try state?.save(job.record)
        job.exports = job.plan.disks.filter(\.participates).map { disk in
            let name = disk.exportName ?? disk.target
            return ExportView(
                disk: disk.target, name: name,
                uri: ExportURI.text(endpoint: started.endpoint, name: name),
                bitmap: disk.offeredBitmap)
        }
        if let next = try? job.state.after(.started) { job.state = next }
        jobs[id] = job
    }

    private func announce(
        _ id: String, timeToLiveSeconds: UInt64?
    ) async throws(ControlError) -> BegunJob {
        guard let job = jobs[id] else { throw .jobNotFound(id) }
        if let seconds = timeToLiveSeconds {
            jobs[id]?.expiresAt = job.begunAt.addingTimeInterval(Double(seconds))
            jobs[id]?.expiryTask = Task { [weak self] in
                try? await Task.sleep(for: .seconds(seconds))
                guard !Task.isCancelled else { return }
                _ = try? await self?.end(job: id, cause: .expired(seconds: seconds))
            }
        }
        begunJobs += 1
        events.append(
            ControlEvent(
                .jobBegin, domain: job.domain, id: id,
                message: "exports " + job.exports.map(\.name).joined(separator: ",")))
        return BegunJob(id: id, exports: job.exports)
    }

    private func drop(_ id: String) {
        guard jobs.removeValue(forKey: id) != nil else { return }
        // A record that stays reports a cut-off job at the next start; the scratch it names is
        // gone.
        try? state?.removeJob(id)
    }
}
