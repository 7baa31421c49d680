import BoundedCalls
package import ServerInterface
import Synchronization
import SystemLayer

/// Jobs end.
extension NBDServer {
    /// A snapshot of a job's figures.
    package func jobReport(id: String) async throws(ServerFault) -> JobReport {
        guard let job = state.withLock({ $0.jobs[id] }) else { throw .unknownJob(id: id) }
        return job.report(shared)
    }

    /// Withdraws the exports, disconnects the clients, stops copying, removes scratch; returns the
    /// last figures.
    package func endJob(id: String) async throws(ServerFault) -> JobReport {
        try await end(jobID: id).get()
    }

    /// What a call that ends a job has taken; the exports go on a thread, where it may take long to
    /// free them.
    private struct Ending {
        let listener: RingListener
        let scope: ExportScope
        let report: JobReport
        let exports: Parting<[BackupExport]>
        let drain: Int32
    }

    /// Ends a job; a second call on the same job finds none.
    func end(jobID: String) async -> Result<JobReport, ServerFault> {
        guard let ending = startEnding(jobID) else { return .failure(.unknownJob(id: jobID)) }
        defer { state.withLock { _ = $0.ending.remove(jobID) } }
        // Who connects until then finds no export.
        ending.scope.removeAll()
        async let closing: Void = close(ending.listener)
        await letGo(ending.exports, ending.drain)
        await closing
        // Nothing more is read: the last word of storage on what was.
        let reason = ending.exports.look { RunningJob.firstReason(of: $0, self.shared) }
        shared.watch.remove(ending.exports.look { $0.map(\.id) } ?? [])
        state.withLock { _ = $0.jobs.removeValue(forKey: jobID) }
        await removeScratch(ending.exports)
        var report = ending.report
        report.brokenReason = report.brokenReason ?? reason ?? nil
        return .success(report)
    }

    private func startEnding(_ id: String) -> Ending? {
        let isStopping = state.withLock(\.isStopping)
        let job = state.withLock { state -> RunningJob? in
            guard let job = state.jobs[id], state.ending.insert(id).inserted else { return nil }
            return job
        }
        guard let job else { return nil }
        return Ending(
            listener: job.listener, scope: job.scope, report: job.report(shared),
            exports: Parting(job.exports),
            drain: isStopping ? Limits.stopDrainMilliseconds : Limits.drainMilliseconds)
    }

    /// Ends what is in flight on the exports; what hangs is waited for as long as the limit allows.
    func letGo(_ exports: Parting<[BackupExport]>, _ milliseconds: Int32) async {
        let call = exports.look { EndCall($0, milliseconds: milliseconds, self.shared) }
        _ = await call?.runLater()
    }
}
