import Foundation
import NBDServer

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
        guard let ending = try? job.state.after(.endRequested(cause)) else {
            throw .jobNotReady(id: id, state: job.state.name)
        }
        jobs[id]?.state = ending
        keepVerdict(id, discards: cause == .failure)
        do {
            // Not straight into the dictionary: its place would be kept over the wait, while others
            // change it.
            let report = try await engine.endJob(id: id)
            jobs[id]?.lastReport = report
        } catch ServerFault.unknownJob, ServerFault.shuttingDown {
            // The engine has nothing of it left; the figures are those of the last look.
        } catch {
            if let back = try? jobs[id]?.state.after(.endRefused) { jobs[id]?.state = back }
            keepVerdict(id, discards: false)
            throw controlError(from: error)
        }
        var problem: String?
        if cause == .failure, let checkpoint = job.checkpoint {
            do throws(ControlError) {
                try await discardCheckpoint(ofJob: id, domain: job.domain)
            } catch {
                problem =
                    "checkpoint '\(checkpoint.name)' could not be removed: \(error.message)"
            }
        }
        return finish(id, cause: cause, problem: problem)
    }

    // Kept before the job ends, so that a crash in between does not keep the checkpoint of a
    // backup that its client called worthless.
    private func keepVerdict(_ id: String, discards: Bool) {
        guard var job = jobs[id], job.checkpoint != nil,
            (job.record.discardsCheckpoint ?? false) != discards
        else { return }
        job.record.discardsCheckpoint = discards
        try? state?.save(job.record)
        jobs[id] = job
    }

    private func finish(_ id: String, cause: EndCause, problem: String?) -> JobInfo {
        guard var job = jobs.removeValue(forKey: id) else { return .none }
        job.expiryTask?.cancel()
        let reason = job.lastReport?.brokenReason
        job.state =
            (try? job.state.after(.engineEnded(brokenReason: reason)))
            ?? .ended(cause.outcome(brokenReason: reason))
        var info = job.info()
        if let problem {
            info.errorMessage = [info.errorMessage, problem].compactMap { $0 }
                .joined(separator: "; ")
        }
        endedJobs[info.jobType, default: 0] += 1
        forgetFinished(job.domain)
        var isStored = false
        if cause == .shutdown {
            // Kept, so that the next server can tell what became of the job.
            job.record.scratch = []
            job.record.socketPath = nil
            job.record.cancelledReason = info.errorMessage
            job.record.elapsedMilliseconds = info.timeElapsed
            try? state?.save(job.record)
            isStored = true
        } else {
            try? state?.removeJob(id)
        }
        finished[job.domain] = FinishedJob(info: info, isStored: isStored)
        events.append(
            ControlEvent(
                .jobEnd, domain: job.domain, id: id,
                message: [info.jobType, info.errorMessage].compactMap { $0 }
                    .joined(separator: ": ")))
        return info
    }

    /// What `domjobinfo` shows of the running job; `JobInfo.none` when there is none.
    package func jobInfo(
        domain: String, job id: String?
    ) async throws(ControlError) -> JobInfo {
        if id == nil, try running(domain).isEmpty { return .none }
        let job = try pick(domain, id, none: .noJob)
        await refresh(job.id)
        return jobs[job.id]?.info() ?? .none
    }

    /// The last finished job of the domain; read once, unless `keep`.
    ///
    /// `JobInfo.none` when there is none.
    package func completedJobInfo(
        domain name: String, job id: String?, keep: Bool
    ) throws(ControlError) -> JobInfo {
        let last = finished[name]
        if last == nil { _ = try domain(name) }
        if let id {
            guard last?.info.id == id else { throw .jobNotFound(id) }
        }
        guard let last else { return .none }
        if !keep { forgetFinished(name) }
        return last.info
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

    /// Takes a fresh look at a job's figures.
    func refresh(_ id: String) async {
        guard jobs[id]?.state.acceptsEnd == true else { return }
        guard let report = try? await engine.jobReport(id: id), jobs[id] != nil else { return }
        jobs[id]?.lastReport = report
        if let reason = report.brokenReason { markBroken(id, reason) }
    }

    /// Forgets the domain's last finished job, its record too.
    func forgetFinished(_ domain: String) {
        guard let last = finished.removeValue(forKey: domain) else { return }
        if last.isStored, let id = last.info.id { try? state?.removeJob(id) }
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
