import BoundedCalls
import Foundation
import ServerInterface

/// Jobs that the last server has left running go on: same name, place, exports, bytes and deadline.
///
/// A job whose begin was complete has all that it was begun with in its record. Where that is
/// missing, of another boot or version, or where the engine finds what is left not to be whole, the
/// job has failed, and its checkpoint is taken back.
extension JobManager {
    /// A job waits so long for a disk of its own that is not there at the start, in milliseconds.
    private var diskMilliseconds: Int32 { settings.storageMilliseconds }
    private static let lookAgainMilliseconds = 50
    /// The start waits so long for jobs whose disks are there, in milliseconds.
    private static let resumeMilliseconds: Int32 = 2_000

    // MARK: At the begin

    /// What the next server needs to go on with a job that is being begun; nil: it cannot.
    func resume(
        of job: Job, _ started: JobStarted, _ timeToLiveSeconds: UInt64?
    ) throws(ControlError) -> StoredResume? {
        let bootID = SystemCalls.bootID
        guard let memory = started.memory, !bootID.isEmpty, state != nil,
            let domain = domains[job.domain]
        else { return nil }
        let age = ContinuousClock.now - job.begun
        return StoredResume(
            bootID: bootID, uuid: domain.definition.uuid, plan: job.plan,
            endpoint: started.endpoint,
            security: try job.plan.security(offersTLS: settings.offersTLS),
            clientRelease: job.clientRelease,
            copyTimeoutMilliseconds: settings.copyTimeoutMilliseconds,
            holdNanoseconds: started.holdNanoseconds,
            begunNanoseconds: SystemCalls.nanosecondsSinceBoot &- age.wholeNanoseconds,
            timeToLiveSeconds: timeToLiveSeconds, diskSizes: started.diskSizes, memory: memory)
    }

    /// A job that has broken is not gone on with, and the next server says why.
    func keepReason(_ id: String, _ reason: String) {
        guard var record = jobs[id]?.record else { return }
        record.brokenReason = reason
        record.resume = nil
        jobs[id]?.record = record
        do throws(ControlError) {
            try state?.update(record)
        } catch {
            // The ledger says that it is closed.
            noteStateProblem(error.message, domain: jobs[id]?.domain, id: id)
        }
    }

    // MARK: At the start

    /// Which jobs may go on, and which are over; those get the reason where there is one to tell.
    func sorted(
        _ records: [StoredJob], _ state: StateDirectory
    ) -> (left: [StoredJob], cutOff: [StoredJob]) {
        var (left, cutOff): ([StoredJob], [StoredJob]) = ([], [])
        for record in records {
            noteScratchNames(of: record)
            switch mayGoOn(record, state) {
            case .success: left.append(record)
            case .failure(let refusal):
                var record = record
                record.brokenReason = record.brokenReason ?? refusal.text
                record.resume = nil
                cutOff.append(record)
            }
        }
        return (left, cutOff)
    }

    private struct Refusal: Error {
        let text: String?
        init(_ text: String?) { self.text = text }
    }

    private func mayGoOn(
        _ record: StoredJob, _ state: StateDirectory
    ) -> Result<StoredResume, Refusal> {
        if let reason = jobsAside[record.id] { return .failure(Refusal(reason)) }
        guard record.ended == nil, record.brokenReason == nil, let kept = record.resume else {
            return .failure(Refusal(nil))
        }
        // That it has failed has been told, and only its record could not be changed any more.
        let told = history[record.domain]?.jobs.first { $0.id == record.id }
        if let told, told.success == false { return .failure(Refusal(told.errorMessage)) }
        guard let resume = kept.value, resume.isKnown else {
            return .failure(
                Refusal(
                    "another version began the job: what it needs to go on cannot be read by this"
                        + " one"))
        }
        let bootID = SystemCalls.bootID
        guard !bootID.isEmpty, resume.bootID == bootID else {
            return .failure(Refusal("the machine was restarted while the job ran"))
        }
        if let checkpoint = record.checkpoint, record.checkpointDeleted != true {
            // It is committed last.
            let known = state.checkpoints(of: resume.uuid).records.contains {
                $0.name == checkpoint && $0.jobID == record.id && $0.phase == .committed
            }
            guard known else {
                return .failure(Refusal("the server stopped while the job was being begun"))
            }
        }
        return .success(resume)
    }

    /// Enters the jobs that may go on; before any disk is opened.
    func expect(_ records: [StoredJob]) async {
        var expected: [JobResumption] = []
        for record in records {
            guard let resume = record.resume?.value else { continue }
            let age = SystemCalls.nanosecondsSinceBoot &- resume.begunNanoseconds
            var job = Job(
                id: record.id, domain: record.domain, plan: resume.plan,
                checkpoint: checkpoint(ofJob: record.id, domain: record.domain),
                record: record, begunAt: record.begun,
                age: .nanoseconds(Int64(clamping: age)))
            job.clientRelease = resume.clientRelease
            jobs[record.id] = job
            nextDiskIndex = max(
                nextDiskIndex, (resume.plan.disks.compactMap(\.index).max() ?? 0) + 1)
            if let resumption = try? resumption(job, resume) { expected.append(resumption) }
        }
        await engine.expectJobs(expected)
    }

    private func resumption(
        _ job: Job, _ resume: StoredResume
    ) throws(ControlError) -> JobResumption {
        let definition = try domain(job.domain).definition
        // The disks have no numbers yet, and the engine does not look at them.
        let targets = resume.plan.disks.filter(\.participates).map(\.target)
        var configuration = try resume.plan.jobConfiguration(
            diskIDs: Dictionary(targets.map { ($0, DiskID(number: 0)) }) { first, _ in first },
            domain: job.domain, security: resume.security,
            copyTimeoutMilliseconds: resume.copyTimeoutMilliseconds)
        configuration.endpoint = resume.endpoint
        configuration.clientRelease = resume.clientRelease
        return JobResumption(
            configuration: configuration,
            liveExports: configuration.disks.map {
                definition.liveExportName(target: $0.target)
            },
            holdNanoseconds: resume.holdNanoseconds, memory: resume.memory)
    }

    /// Serves jobs as soon as their disks are there.
    func beginResuming(_ records: [StoredJob]) -> [String: Task<Void, Never>] {
        var tasks: [String: Task<Void, Never>] = [:]
        for record in records { tasks[record.id] = Task { await self.resume(record.id) } }
        return tasks
    }

    /// Waits a moment for jobs whose disks are there.
    func finishResuming(_ tasks: [String: Task<Void, Never>]) async {
        let awaited = tasks.filter { jobs[$0.key].map { missingDisk(of: $0) == nil } ?? false }
        _ = await Patience.wait(
            for: Array(awaited.values), milliseconds: Self.resumeMilliseconds)
    }

    private func resume(_ id: String) async {
        guard let job = jobs[id], let resume = job.record.resume?.value else { return }
        do throws(ControlError) {
            try checkSettings(job, resume)
            try await awaitDisks(of: job)
            try takeUp(job, resume, try await resumeInEngine(id))
            try await restartPush(id)
        } catch {
            // Another server is to have it.
            guard !isAbandoned else { return }
            jobs[id]?.crew?.stop()
            await engine.forgetJob(id: id)
            await fail(id, error.message)
        }
    }

    private func resumeInEngine(_ id: String) async throws(ControlError) -> JobStarted {
        do throws(ServerFault) {
            return try await engine.resumeJob(id: id)
        } catch {
            throw controlError(from: error)
        }
    }

    // What was allowed at the begin may not be now.
    private func checkSettings(_ job: Job, _ resume: StoredResume) throws(ControlError) {
        _ = try domain(job.domain)
        guard resume.security == .plaintext || settings.offersTLS else { throw .tlsNotConfigured }
        try PlaintextPolicy.check(
            resume.endpoint, security: resume.security, allowPlaintext: settings.allowPlaintext)
    }

    private func awaitDisks(of job: Job) async throws(ControlError) {
        let end = ContinuousClock.now + .milliseconds(Int64(diskMilliseconds))
        while missingDisk(of: job) != nil {
            // Ends as soon as the disks are there that are being opened already.
            await retryFailedDisks(of: job.domain)
            guard let missing = missingDisk(of: job) else { return }
            guard !isStopping else { throw .serverStopping }
            guard ContinuousClock.now < end else { throw missing }
            try? await Task.sleep(for: .milliseconds(Self.lookAgainMilliseconds))
        }
    }

    private func missingDisk(of job: Job) -> ControlError? {
        for disk in job.plan.disks where disk.participates {
            switch domains[job.domain]?.attachments[disk.target] {
            case .attached: continue
            case .failed(let reason):
                return .diskUnavailable(domain: job.domain, target: disk.target, reason: reason)
            case .noMedia, nil: return .diskWithoutMedia(disk.target)
            }
        }
        return nil
    }

    private func takeUp(
        _ job: Job, _ resume: StoredResume, _ started: JobStarted
    ) throws(ControlError) {
        guard var job = jobs[job.id] else { throw .jobNotFound(job.id) }
        var known = started
        known.diskSizes = resume.diskSizes
        job.started = known
        job.exports = try exports(of: job, started)
        if let next = try? job.state.after(.started) { job.state = next }
        jobs[job.id] = job
        if let seconds = resume.timeToLiveSeconds { startExpiry(of: job, after: seconds) }
        events.append(
            ControlEvent(
                .jobResumed, domain: job.domain, id: job.id,
                message: job.summary))
    }

    // The job is over; what it has made goes.
    private func fail(_ id: String, _ reason: String) async {
        guard var job = jobs[id] else { return }
        job.record.brokenReason = reason
        job.record.resume = nil
        let outcome = JobOutcome.failed(reason: reason)
        job.state = .ended(outcome)
        var info = job.info()
        info.ended = Date()
        info.tempTotal = job.record.tempTotalBytes
        info.checkpointKept = job.checkpoint == nil ? nil : false
        for (record, warnings) in await clean([job.record]) {
            job.record = record
            for warning in warnings { noteStateProblem(warning, domain: job.domain, id: id) }
        }
        if domains[job.domain] == nil {
            // Left out now, it may come back, and its checkpoint is no base then.
            unsettled[id] = Unsettled(domain: job.domain, checkpoint: job.record.checkpoint)
            keepForNextStart(job, info)
        } else {
            await takeBack(job, &info)
            if !job.record.scratch.isEmpty { keepForNextStart(job, info) }
        }
        jobs.removeValue(forKey: id)
        leaveRoom(of: job)
        keepInHistory(info)
        endedCounts[outcome.label, default: 0] += 1
        events.append(
            ControlEvent(
                .jobEnd, domain: job.domain, id: id, message: "\(info.jobType): \(reason)"))
    }

    // Scratch that does not answer now is removed by the next start.
    private func keepForNextStart(_ job: Job, _ info: JobInfo) {
        var record = job.record
        record.ended = info
        do throws(ControlError) {
            try state?.save(record)
        } catch {
            noteStateProblem(error.message, domain: job.domain, id: job.id)
        }
    }
}

extension Duration {
    /// Nanoseconds, none if it is negative.
    fileprivate var wholeNanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(max(seconds, 0)) &* 1_000_000_000
            &+ UInt64(max(attoseconds, 0) / 1_000_000_000)
    }
}
