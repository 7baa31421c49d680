import Foundation
import ServerInterface

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
    /// A disk whose chain does not hold the checkpoint asked for is backed up in full; otherwise
    /// it refuses the whole job.
    package var fallsBackToFull: Bool
    /// Clients may release clusters by TRIM.
    package var clientRelease: Bool
    /// The guest's file systems are frozen for the instant.
    package var quiesces: Bool
    /// For a push only.
    package var push: BackupPlan.PushTerms?
    /// The job's id, a UUID; nil: the server chooses one.
    package var id: String?

    package init(
        backupXML: String? = nil, checkpointXML: String? = nil, reuseExternal: Bool = false,
        timeToLiveSeconds: UInt64? = nil, fallsBackToFull: Bool = false,
        clientRelease: Bool = false, quiesces: Bool = false, id: String? = nil
    ) {
        self.id = id
        self.quiesces = quiesces
        self.clientRelease = clientRelease
        self.fallsBackToFull = fallsBackToFull
        self.backupXML = backupXML
        self.checkpointXML = checkpointXML
        self.reuseExternal = reuseExternal
        self.timeToLiveSeconds = timeToLiveSeconds
    }
}

extension JobManager {
    /// Begins a backup job; its exports are served when this returns.
    ///
    /// A refused begin leaves nothing behind, no checkpoint either. With an id that a job has been
    /// begun under before, nothing begins: the answer is that job's.
    package func begin(
        domain name: String, _ request: BeginRequest
    ) async throws(ControlError) -> BegunJob {
        let parsed = try check(name, request)
        let id = try request.id.map(Self.jobID) ?? UUID().uuidString.lowercased()
        if request.id != nil, let job = try await begun(id, domain: name) { return job }
        if parsed.checkpoint != nil { await lockCheckpoints(of: name) }
        defer { if parsed.checkpoint != nil { unlockCheckpoints(of: name) } }
        await retryFailedDisks(of: name)
        let bases = try await incrementalBases(of: name, fallsBackToFull: request.fallsBackToFull)
        // One that was asked for at the same time has come so far first.
        if request.id != nil, let job = try await begun(id, domain: name) { return job }
        var job: Job
        do throws(ControlError) {
            job = try reserve(id, domain: name, parsed, bases, request)
        } catch {
            throw await HostNames.explained(error, parsed.backup?.endpoint)
        }
        do throws(ControlError) {
            try await checkPlaces(of: job)
            job.record.scratch = try await scratchToMake(by: job.plan)
            job.record.targets = targets(of: job.plan)
            jobs[id]?.record = job.record
            try state?.save(job.record)
            if let checkpoint = job.checkpoint { try await prepare(checkpoint, domain: name) }
            jobs[id]?.clientRelease = request.clientRelease
            try await preparePush(id)
            // Not in one: the entry may not be held while this waits.
            let started = try await start(id, request)
            jobs[id]?.started = started
        } catch {
            await discardPush(id)
            forgetPending(job)
            drop(id)
            throw await HostNames.explained(error, parsed.backup?.endpoint)
        }
        let isInOneFrozenTime = await thaw(request.quiesces, for: id)
        do throws(ControlError) {
            guard isInOneFrozenTime else { throw .thawedTooEarly(name) }
            try finishBegin(id, timeToLiveSeconds: request.timeToLiveSeconds)
            if let checkpoint = job.checkpoint { try commit(checkpoint, domain: name) }
        } catch {
            await undo(job)
            throw error
        }
        return try announce(id, timeToLiveSeconds: request.timeToLiveSeconds)
    }

    // Ends a job that the engine has begun and nobody was told of. One that will not end stays
    // listed as broken, so that it can be ended later: dropped, it would hold its disks for ever.
    private func undo(_ job: Job) async {
        var isEnded = true
        do throws(ServerFault) {
            _ = try await engine.endJob(id: job.id)
        } catch ServerFault.unknownJob, ServerFault.shuttingDown {
        } catch {
            isEnded = false
            if let running = try? jobs[job.id]?.state.after(.started) {
                jobs[job.id]?.state = running
            }
            let reason = controlError(from: error).message
            markBroken(job.id, "its begin failed, and it could not be taken back: \(reason)")
        }
        if let checkpoint = job.checkpoint { await takeBack(checkpoint, domain: job.domain) }
        await discardPush(job.id)
        forgetTargets(of: job.id)
        guard !isEnded else { return drop(job.id) }
        guard job.plan.push != nil, let left = jobs[job.id] else { return }
        // Nobody knows of a push whose begin was refused, and a push ends by itself.
        let cause = EndCause.pushFailed(reason: left.state.brokenReason ?? "it did not begin")
        Task { await self.endPush(job.id, left.crew, cause) }
    }

    // No worker has written anything: what was there before is as it was, now and at the next start.
    private func forgetTargets(of id: String) {
        guard var record = jobs[id]?.record, record.targets != nil else { return }
        record.targets = nil
        record.resume = nil
        jobs[id]?.record = record
        do throws(ControlError) {
            try state?.update(record)
        } catch {
            noteStateProblem(error.message, domain: record.domain, id: id)
        }
    }

    // A file of that name that is not the pending one keeps bitmaps that nobody knows.
    private func forgetPending(_ job: Job) {
        guard let checkpoint = job.checkpoint, let domain = domains[job.domain],
            !domain.keptLayers.contains(checkpoint.name)
        else { return }
        do throws(ControlError) {
            try state?.removeCheckpoint(checkpoint.name, of: domain.definition.uuid)
        } catch {
            noteStateProblem(error.message, domain: job.domain, id: job.id)
        }
    }

    // What a request says, read.
    private struct ParsedRequest {
        var backup: BackupRequest?
        var checkpoint: CheckpointRequest?
    }

    // Everything that can be refused without asking the engine, in the order a user meets it.
    private func check(
        _ name: String, _ request: BeginRequest
    ) throws(ControlError) -> ParsedRequest {
        try checkTakesChanges()
        _ = try domain(name)
        var parsed = ParsedRequest()
        if let xml = request.backupXML { parsed.backup = try BackupRequest.parse(xml) }
        if request.push != nil, parsed.backup?.isPush != true {
            throw .needsPush("bandwidth, compress and verify")
        }
        if parsed.backup?.isPush == true, request.clientRelease {
            throw .invalidArgument(
                what: "clientRelease", detail: "a backup in push mode has no clients")
        }
        if let xml = request.checkpointXML { parsed.checkpoint = try CheckpointRequest.parse(xml) }
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
        _ id: String, domain name: String, _ parsed: ParsedRequest, _ bases: IncrementalBases,
        _ asked: BeginRequest
    ) throws(ControlError) -> Job {
        guard !isStopping else { throw .serverStopping }
        let domain = try domain(name)
        var request =
            if let backup = parsed.backup { backup } else { try defaultRequest(jobID: id) }
        if request.isPush {
            request.endpoint = .unix(
                path: "\(settings.runDirectory)/push-\(id).sock", mode: BackupRequest.socketMode)
        }
        var checkpoint: CheckpointMetadata?
        if let asked = parsed.checkpoint {
            let planned = try CheckpointPlan.create(
                asked, domain: domain.definition, tree: domain.checkpoints, now: Self.now,
                jobID: id)
            _ = try engineCheckpoint(planned, in: domain)
            checkpoint = planned
        }
        let plan = try BackupPlan.make(
            request, domain: domain.definition, jobID: id, reuseExternal: asked.reuseExternal,
            scratchSuffix: checkpoint?.name ?? nextScratchSuffix(),
            scratchDirectory: settings.scratchDirectory, firstIndex: nextDiskIndex,
            bases: bases, push: asked.push ?? BackupPlan.PushTerms())
        let security = try plan.security(offersTLS: settings.offersTLS)
        try PlaintextPolicy.check(
            plan.endpoint, security: security, allowPlaintext: settings.allowPlaintext)
        for disk in plan.disks where disk.participates {
            if case .failed(let reason) = domain.attachments[disk.target] {
                throw .diskUnavailable(domain: name, target: disk.target, reason: reason)
            }
        }
        nextDiskIndex += plan.disks.count
        var record = record(of: plan, domain: name)
        record.checkpoint = checkpoint?.name
        let job = Job(
            id: id, domain: name, plan: plan, checkpoint: checkpoint, record: record)
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
    // own, those of an earlier server that go on included.
    private func nextScratchSuffix() -> String {
        lastScratchSuffix = max(Int64(Date().timeIntervalSince1970), lastScratchSuffix + 1)
        return String(lastScratchSuffix)
    }

    /// Names of scratch that an earlier server has made up are not made up again.
    func noteScratchNames(of record: StoredJob) {
        let now = Int64(Date().timeIntervalSince1970)
        for path in record.scratch.map(\.path) {
            // What is far from now is a name that somebody has chosen.
            guard let suffix = path.split(separator: ".").last.flatMap({ Int64($0) }),
                abs(suffix - now) < Self.scratchSuffixRange
            else { continue }
            lastScratchSuffix = max(lastScratchSuffix, suffix)
        }
    }

    private static let scratchSuffixRange: Int64 = 1_000_000

    // Written before anything is made, so that a crash at any point can be cleaned up after.
    private func record(of plan: BackupPlan, domain: String) -> StoredJob {
        var socketPath: String?
        if case .unix(let path, _) = plan.endpoint { socketPath = path }
        return StoredJob(
            id: plan.jobID, domain: domain, begun: Date(), scratch: [],
            socketPath: socketPath)
    }

    private func configuration(of job: Job) throws(ControlError) -> JobConfiguration {
        var ids: [String: DiskID] = [:]
        for (target, attachment) in domains[job.domain]?.attachments ?? [:] {
            if case .attached(let id) = attachment { ids[target] = id }
        }
        var checkpoint: CheckpointConfiguration?
        if let planned = job.checkpoint {
            checkpoint = try engineCheckpoint(planned, in: try domain(job.domain))
        }
        var configuration = try job.plan.jobConfiguration(
            diskIDs: ids, domain: job.domain,
            security: try job.plan.security(offersTLS: settings.offersTLS),
            copyTimeoutMilliseconds: settings.copyTimeoutMilliseconds,
            checkpoint: checkpoint)
        configuration.clientRelease = job.clientRelease
        return configuration
    }

    // Guests stand still for the instant and nothing else: everything that may take long is made
    // before. The caller thaws them when it has gone well.
    //
    // A chain that turns out to be broken only now makes its disk a full one too, where that is
    // allowed; each round has one incremental disk less.
    private func start(
        _ id: String, _ request: BeginRequest
    ) async throws(ControlError) -> JobStarted {
        if request.quiesces, settings.freezer == nil { throw .agentNotConfigured }
        while let job = jobs[id] {
            let configuration = try configuration(of: job)
            do throws(ServerFault) {
                return try await engine.beginJob(
                    configuration, beforeInstant: { await self.freeze(for: id, request) })
            } catch {
                _ = await thaw(request.quiesces, for: id)
                if let fault = jobs[id]?.freezeFault { throw fault }
                guard request.fallsBackToFull,
                    case .checkpointUnusable(_, let target, let detail) = error,
                    let plan = job.plan.makingFull(target, reason: detail)
                else { throw controlError(from: error) }
                jobs[id]?.plan = plan
            }
        }
        throw .jobNotFound(id)
    }

    // False when there is to be no instant; the job says why.
    private func freeze(for id: String, _ request: BeginRequest) async -> Bool {
        do throws(ControlError) {
            guard let job = jobs[id] else { throw .jobNotFound(id) }
            try await freeze(request.quiesces, try domain(job.domain).definition, for: id)
            return true
        } catch {
            jobs[id]?.freezeFault = error
            return false
        }
    }

    private func finishBegin(
        _ id: String, timeToLiveSeconds: UInt64?
    ) throws(ControlError) {
        guard var job = jobs[id], let started = job.started else { throw .jobNotFound(id) }
        if isStopping { throw .serverStopping }
        job.record.tempTotalBytes = started.diskSizes.values.clampedSum
        for index in job.record.scratch.indices {
            let file = started.scratchFiles[job.record.scratch[index].path]
            job.record.scratch[index].identity = file.map {
                SystemCalls.FileIdentity(device: $0.device, inode: $0.inode)
            }
        }
        // The workers have their targets, and write from here on.
        for index in (job.record.targets ?? []).indices {
            job.record.targets?[index].isBegun = true
        }
        job.record.notLasting = started.notLasting
        job.record.resume = try resume(of: job, started, timeToLiveSeconds).map { Lenient($0) }
        // After a loss of power the record from before says enough.
        try state?.update(job.record)
        job.exports = try exports(of: job, started)
        if let next = try? job.state.after(.started) { job.state = next }
        jobs[id] = job
    }

    /// What clients are told of a job that is served.
    func exports(of job: Job, _ started: JobStarted) throws(ControlError) -> [ExportView] {
        // Those of a push are for its workers.
        guard job.plan.push == nil else { return [] }
        let security = try job.plan.security(offersTLS: settings.offersTLS)
        let endpoint = started.endpoint.reachable
        return job.plan.disks.filter(\.participates).map { disk in
            let name = disk.exportName ?? disk.target
            return ExportView(
                disk: disk.target, name: name,
                uri: ExportURI.text(
                    endpoint: endpoint, name: name, security: security),
                bitmap: disk.offeredBitmap, moreBitmaps: disk.moreBitmaps,
                incremental: disk.incremental,
                fallbackReason: disk.fallbackReason)
        }
    }

    private func announce(
        _ id: String, timeToLiveSeconds: UInt64?
    ) throws(ControlError) -> BegunJob {
        guard let job = jobs[id] else { throw .jobNotFound(id) }
        if let timeToLiveSeconds { startExpiry(of: job, after: timeToLiveSeconds) }
        startPush(id)
        begunJobs += 1
        if let hold = job.started?.holdNanoseconds { holds.note(nanoseconds: hold) }
        events.append(
            ControlEvent(
                .jobBegin, domain: job.domain, id: id,
                message: job.summary))
        if let warning = job.warning {
            events.append(
                ControlEvent(.jobNotLasting, domain: job.domain, id: id, message: warning))
        }
        return job.answer
    }

    /// Ends the job when its time, counted from its begin, is over.
    func startExpiry(of job: Job, after seconds: UInt64) {
        let id = job.id
        jobs[id]?.expiresAt = job.begunAt.addingTimeInterval(Double(seconds))
        let end = job.begun + .seconds(seconds)
        jobs[id]?.expiryTask = Task { [weak self] in
            try? await Task.sleep(until: end, clock: .continuous)
            // An end that is refused now is asked for again, until the job is gone.
            while !Task.isCancelled, await self?.expire(id, after: seconds) == false {
                try? await Task.sleep(for: .seconds(Self.expiryRetrySeconds))
            }
        }
    }

    /// Seconds until the end of a job whose time is over is tried again.
    private static let expiryRetrySeconds = 5

    // Whether there is nothing left to do.
    private func expire(_ id: String, after seconds: UInt64) async -> Bool {
        guard let job = jobs[id], job.state.acceptsEnd else { return jobs[id] == nil }
        if !job.isExpiryTold {
            jobs[id]?.isExpiryTold = true
            events.append(
                ControlEvent(
                    .jobExpired, domain: job.domain, id: id,
                    message: "its time to live of \(seconds) s is over: it is ended as failed"))
        }
        return (try? await end(job: id, cause: .expired(seconds: seconds))) != nil
    }

    private func drop(_ id: String) {
        guard let job = jobs.removeValue(forKey: id) else { return }
        do throws(ControlError) {
            try state?.removeJob(id)
        } catch {
            // The record that stays makes the next start report a job that was cut off.
            noteStateProblem(error.message, domain: job.domain, id: id)
        }
    }
}
