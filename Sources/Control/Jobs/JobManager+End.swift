import Foundation
import ServerInterface

extension JobManager {
    /// Ends a job with a verdict; returns its last figures.
    ///
    /// `job` may be nil when the domain has exactly one. Throws 55 when there is none, and when the
    /// job is being begun or ended by somebody else.
    @discardableResult
    package func end(
        domain: String, job id: String?, cause: EndCause
    ) async throws(ControlError) -> JobInfo {
        let job = try pick(domain, id, none: .noActiveJob)
        return try await end(job: job.id, cause: cause)
    }

    /// Ends the job of this id, whatever its domain.
    @discardableResult
    func end(job id: String, cause: EndCause) async throws(ControlError) -> JobInfo {
        guard let job = jobs[id] else { throw .jobNotFound(id) }
        if isLeaving { throw .serverRestarting }
        var cause = cause
        if job.plan.push != nil {
            if case .success = cause { throw .pushEndsItself(id) }
            if case .abort = cause { cause = .pushAborted }
        }
        guard let ending = try? job.state.after(.endRequested(cause)) else {
            throw .jobNotReady(id: id, state: job.state.name)
        }
        jobs[id]?.state = ending
        job.crew?.stop()
        do {
            // Not straight into the dictionary: its place would be kept over the wait, while others
            // change it.
            let report = try await engine.endJob(id: id)
            jobs[id]?.lastReport = report
        } catch ServerFault.unknownJob, ServerFault.shuttingDown {
            // Nothing of it is left, and nobody has asked it whether it was whole to the end.
            markBroken(id, "the server had given the job up before it was ended")
        } catch {
            if let back = try? jobs[id]?.state.after(.endRefused) { jobs[id]?.state = back }
            let refusal = controlError(from: error)
            if let crew = jobs[id]?.crew, cause.endsWorkers {
                // Its workers have been ended, and nobody would write the rest.
                Task {
                    await self.endPush(
                        id, crew, .pushFailed(reason: "its end was refused: \(refusal.message)"))
                }
            }
            throw refusal
        }
        return await finish(id, cause: cause)
    }

    // The job stays listed as ending, and its checkpoint no base, until all of this is done.
    private func finish(_ id: String, cause: EndCause) async -> JobInfo {
        guard var job = jobs[id] else { return .none }
        // The task of a job that has expired is the one that runs this.
        if case .expired = cause {} else { job.expiryTask?.cancel() }
        let reason = job.lastReport?.brokenReason
        let after = try? job.state.after(.engineEnded(brokenReason: reason))
        var outcome = cause.outcome(brokenReason: reason)
        if case .ended(let ended) = after { outcome = ended }
        if outcome.isGood, let problem = await publish(job) {
            outcome = .failed(reason: problem)
        }
        job.state = .ended(outcome)
        var info = Self.endedInfo(job, outcome)
        // Before the verdict: whoever has lost the answer finds it there. While there is a record
        // the next server believes that, and puts the history right.
        if outcome.isGood { keepInHistory(info) }
        if outcome.isGood, let problem = keepVerdict(job) {
            outcome = .failed(reason: "the verdict cannot be kept: \(problem)")
            job.state = .ended(outcome)
            info = Self.endedInfo(job, outcome)
        }
        if !outcome.isGood {
            let unmarked = await spoil(job.record.targets, domain: job.domain, id: id)
            job.record.targets = unmarked
            await takeBack(job, &info)
        }
        jobs.removeValue(forKey: id)
        leaveRoom(of: job)
        if !outcome.isGood { keepInHistory(info) }
        endedCounts[outcome.label, default: 0] += 1
        endedReadBytes &+= (job.lastReport?.disks ?? []).reduce(0) { $0 &+ $1.bytesRead }
        var event = ControlEvent(
            .jobEnd, domain: job.domain, id: id,
            message: [info.jobType, info.errorMessage].compactMap { $0 }.joined(separator: ": "))
        event.outcome = outcome.label
        events.append(event)
        return info
    }

    private static func endedInfo(_ job: Job, _ outcome: JobOutcome) -> JobInfo {
        var info = job.info()
        info.ended = Date()
        info.checkpointKept = job.checkpoint == nil ? nil : outcome.isGood
        return info
    }

    // Without its record the job has ended well: this is the moment when its checkpoint becomes a
    // base, and a push is over. A verdict that would not outlive the server is none, unless nothing
    // hangs on it: the next server would go on with the push, and write over good targets.
    private func keepVerdict(_ job: Job) -> String? {
        do throws(ControlError) {
            try state?.removeJob(job.id)
            return nil
        } catch {
            guard job.checkpoint == nil, job.record.targets == nil else { return error.message }
            noteStateProblem(error.message, domain: job.domain, id: job.id)
            return nil
        }
    }

    // The record goes last, or stays for the next start to finish the work: with the targets that
    // are not marked yet.
    func takeBack(_ job: Job, _ info: inout JobInfo) async {
        var problem: String?
        if let checkpoint = job.checkpoint {
            problem = await takeBackCheckpoint(
                ofJob: job.id, domain: job.domain, checkpoint: checkpoint.name)
            if let problem {
                let text =
                    "checkpoint '\(checkpoint.name)' is no longer usable but could not be "
                    + "removed yet: \(problem)"
                info.errorMessage = [info.errorMessage, text].compactMap { $0 }
                    .joined(separator: "; ")
                noteStateProblem(text, domain: job.domain, id: job.id)
            }
        }
        do throws(ControlError) {
            if problem == nil { unsettled[job.id] = nil }
            if problem == nil, job.record.targets == nil {
                try state?.removeJob(job.id)
            } else {
                var record = job.record
                record.scratch = []
                record.socketPath = nil
                record.resume = nil
                record.ended = info
                try state?.save(record)
            }
        } catch {
            noteStateProblem(error.message, domain: job.domain, id: job.id)
        }
    }

    /// What `domjobinfo` shows of the running job; `JobInfo.none` when there is none.
    package func jobInfo(
        domain: String, job id: String?
    ) async throws(ControlError) -> JobInfo {
        // One that is being ended is shown until its verdict is there: whoever waits for none to run
        // finds the last one's then, and not that of the job before.
        if id == nil, try running(domain).isEmpty {
            let ending = jobs.values.filter { $0.domain == domain && $0.state.isEnding }
            return ending.min { $0.begun < $1.begun }?.info() ?? .none
        }
        let job = try pick(domain, id, none: .noJob)
        await refresh(job.id)
        return jobs[job.id]?.info() ?? .none
    }

    /// Libvirt's output form of a job, and its exports.
    package func backupXML(domain: String, job id: String?) throws(ControlError) -> BackupXMLBody {
        let job = try pick(domain, id, none: .noJob)
        return BackupXMLBody(
            xml: job.plan.xml(startedEndpoint: job.started?.endpoint), exports: job.exports)
    }

    /// The jobs that have not ended, oldest first; of one domain or of all.
    package func listJobs(domain: String?) async throws(ControlError) -> [JobView] {
        if let domain { _ = try self.domain(domain) }
        for job in Array(jobs.values) where domain == nil || job.domain == domain {
            await refresh(job.id)
        }
        return jobs.values.filter { domain == nil || $0.domain == domain }
            .sorted { ($0.begunAt, $0.id) < ($1.begunAt, $1.id) }.map(\.view)
    }

    /// Refreshes a job's figures.
    func refresh(_ id: String) async {
        guard jobs[id]?.state.acceptsEnd == true else { return }
        guard let report = try? await engine.jobReport(id: id), jobs[id] != nil else { return }
        jobs[id]?.lastReport = report
        if let reason = report.brokenReason { markBroken(id, reason) }
    }

    private func running(_ domain: String) throws(ControlError) -> [Job] {
        _ = try self.domain(domain)
        return jobs.values.filter { $0.domain == domain && $0.state.acceptsEnd }
    }

    private func pick(
        _ domain: String, _ id: String?, none: ControlError
    ) throws(ControlError) -> Job {
        let candidates = try running(domain)
        if let id {
            guard let job = jobs[id.lowercased()], job.domain == domain else {
                throw .jobNotFound(id)
            }
            return job
        }
        guard let job = candidates.first else { throw none }
        guard candidates.count == 1 else { throw .jobAmbiguous(domain: domain) }
        return job
    }
}

extension EndCause {
    /// Whether it ends the workers of a push before they are done.
    fileprivate var endsWorkers: Bool {
        switch self {
        case .pushed, .pushFailed: false
        case .success, .failure, .abort, .expired, .shutdown, .pushAborted: true
        }
    }
}
