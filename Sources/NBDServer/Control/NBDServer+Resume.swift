import BoundedCalls
import Disk
import PointInTime
import ScratchFiles
package import ServerInterface
import Synchronization
import SystemLayer
import Tracking

/// A job that an earlier process has left, on its way back.
struct ExpectedJob: Sendable {
    let resumption: JobResumption
    let scope: ExportScope
    /// Those whose ledgers are attached, by the disk's number in the job.
    var exports: [Int: BackupExport] = [:]
    /// Why it cannot be gone on with.
    var refusal: String?

    init(_ resumption: JobResumption) {
        self.resumption = resumption
        let configuration = resumption.configuration
        scope = ExportScope(jobID: configuration.id, domain: configuration.domain)
    }

    func has(_ disk: DiskID) -> Bool { exports.values.contains { $0.disk == disk } }
}

/// One disk of such a job, ready for its home ring; or why it cannot be.
struct PreparedExport: Sendable {
    let jobID: String
    let disk: Int
    let found: Result<Found, Refusal>

    struct Found: Sendable {
        let left: LeftExport
        let scratch: ScratchStorage
    }

    struct Refusal: Error {
        let text: String
        init(_ text: String) { self.text = text }
    }
}

/// Jobs go on that a process has left which was killed.
///
/// `expectJobs` comes before the first disk. A disk is shown to machines only when the ledgers of its
/// jobs are attached, so the instants stay. A job is served when all its disks are there.
extension NBDServer {
    /// Takes note of the jobs that are to go on; what other jobs have left in memory is removed.
    package func expectJobs(_ jobs: [JobResumption]) async {
        state.withLock { state in
            for job in jobs { state.expected[job.configuration.id] = ExpectedJob(job) }
        }
        guard let jobMemory else { return }
        JobMemory.removeOthers(than: Set(jobs.map(\.configuration.id)), in: jobMemory)
    }

    /// Serves a job whose disks are attached, where it was served before.
    ///
    /// Throws when it cannot be gone on with; `forgetJob` is to follow.
    package func resumeJob(id: String) async throws(ServerFault) -> JobStarted {
        guard let expected = state.withLock({ $0.expected[id] }) else { throw .unknownJob(id: id) }
        return try await resume(expected).get()
    }

    /// Gives up a job that was expected, or resumed: nothing is left of it.
    package func forgetJob(id: String) async {
        _ = await end(jobID: id)
        await giveUp(id)
    }

    private func resume(_ expected: ExpectedJob) async -> Result<JobStarted, ServerFault> {
        let configuration = expected.resumption.configuration
        if let refusal = expected.refusal { return .failure(.jobNotResumed(detail: refusal)) }
        var exports: [BackupExport] = []
        for (index, disk) in configuration.disks.enumerated() {
            guard let export = expected.exports[index] else {
                return .failure(
                    .jobNotResumed(detail: "disk '\(disk.target)' is not served any more"))
            }
            exports.append(export)
        }
        if let reason = RunningJob.firstReason(of: exports, shared) {
            return .failure(.jobNotResumed(detail: reason))
        }
        guard !state.withLock(\.isStopping) else { return .failure(.shuttingDown) }
        let opened = await open(
            configuration.endpoint, scope: expected.scope, security: configuration.security)
        switch opened {
        case .failure(let fault): return .failure(fault)
        case .success(let opened):
            let started = publish(
                configuration.id, exports, expected.scope, opened,
                expected.resumption.holdNanoseconds)
            state.withLock { _ = $0.expected.removeValue(forKey: configuration.id) }
            return .success(started)
        }
    }

    private func giveUp(_ id: String) async {
        guard let expected = state.withLock({ $0.expected[id] }) else { return }
        let exports = Array(expected.exports.values)
        expected.scope.removeAll()
        await letGo(Parting(exports), Limits.drainMilliseconds)
        shared.watch.remove(exports.map(\.id))
        let count = expected.resumption.configuration.disks.count
        for disk in 0..<count { memory(of: expected.resumption, disk).remove() }
        state.withLock { _ = $0.expected.removeValue(forKey: id) }
        await removeScratch(Parting(exports))
    }

    private func memory(of job: JobResumption, _ disk: Int) -> JobMemory {
        JobMemory(directory: job.memory, jobID: job.configuration.id, disk: disk)
    }

    // MARK: A disk is there again

    /// Opens and judges what belongs to the jobs of a disk that is being attached; scratch that does not
    /// answer costs its job only.
    func openExpected(_ liveExport: String, _ source: RawSource) async -> [PreparedExport] {
        let wanted = state.withLock { state in
            state.expected.values.flatMap { job -> [(ExpectedJob, Int)] in
                guard job.refusal == nil else { return [] }
                return job.resumption.liveExports.indices.filter {
                    job.resumption.liveExports[$0] == liveExport && job.exports[$0] == nil
                }.map { (job, $0) }
            }
        }
        return await withTaskGroup(of: PreparedExport.self) { group in
            for (job, disk) in wanted {
                group.addTask { await self.prepare(job.resumption, disk, source) }
            }
            var prepared: [PreparedExport] = []
            for await each in group { prepared.append(each) }
            return prepared
        }
    }

    private func prepare(
        _ job: JobResumption, _ disk: Int, _ source: RawSource
    ) async -> PreparedExport {
        let path = job.configuration.disks[disk].scratch.path
        let looked = await storage.run(
            at: .of(path), what: "scratch '\(path)'",
            .begin(milliseconds: Limits.resumeMilliseconds)
        ) { () -> Result<Result<PreparedExport.Found, PreparedExport.Refusal>, ServerFault> in
            .success(
                Result { () throws(PreparedExport.Refusal) in
                    try LeftJob(
                        job, disk, self.memory(of: job, disk), readers: self.readers,
                        reserved: self.shared.configuration.reserved
                    ).open(source)
                })
        }
        let found: Result<PreparedExport.Found, PreparedExport.Refusal> =
            switch looked {
            case .success(let found): found
            case .failure: .failure(.init("scratch '\(path)' does not answer"))
            }
        if case .failure(let refusal) = found {
            // The disk is served next, without the ledger: however this server ends, no later one may go on
            // with it, whatever that one is told of scratch and source.
            memory(of: job, disk).remove()
            state.withLock { $0.expected[job.configuration.id]?.refusal = refusal.text }
        }
        return PreparedExport(jobID: job.configuration.id, disk: disk, found: found)
    }

    /// On a thread: the ledgers of its jobs are attached to a disk that no machine can see yet.
    func attach(_ prepared: [PreparedExport], to live: LiveExport) {
        for each in prepared {
            let attached: Result<BackupExport, PreparedExport.Refusal> =
                switch each.found {
                case .failure(let refusal): .failure(refusal)
                case .success(let found): attach(found, each, to: live)
                }
            state.withLock { state in
                switch attached {
                case .success(let export):
                    state.expected[each.jobID]?.exports[each.disk] = export
                case .failure(let refusal):
                    state.expected[each.jobID]?.refusal = refusal.text
                }
            }
        }
    }

    private func attach(
        _ found: PreparedExport.Found, _ prepared: PreparedExport, to live: LiveExport
    ) -> Result<BackupExport, PreparedExport.Refusal> {
        guard let job = state.withLock({ $0.expected[prepared.jobID] }) else {
            return .failure(.init("it was given up"))
        }
        let configuration = job.resumption.configuration
        let facts = found.left.facts
        let export: BackupExport
        do throws(SystemFault) {
            export = try BackupExport(
                configuration.disks[prepared.disk], jobID: configuration.id, live: live,
                scratch: found.scratch, home: shared.mailboxes[live.homeRing],
                reservedBytes: facts.reservedBytes, allocatedBytes: facts.allocatedBytes,
                granularityShift: found.left.granularityShift,
                copyTimeoutMilliseconds: configuration.copyTimeoutMilliseconds,
                mayRelease: configuration.clientRelease, left: found.left)
        } catch {
            return .failure(.init("no memory for it: \(error.errorText)"))
        }
        if let bitmap = found.left.bitmap { export.bitmaps.first?.freeze(bitmap) }
        guard job.scope.add(.backup(export)) else {
            return .failure(.init("it has two exports of one name"))
        }
        shared.watch.add([export], shared)
        guard attachInOrder(export, live) else {
            shared.watch.remove([export.id])
            shared.mailboxes[live.homeRing].post(.detachJob(export, Replies().ticket()))
            export.writer.close()
            return .failure(.init("disk '\(export.target)' has no place for it"))
        }
        export.keepFigures()
        return .success(export)
    }

    /// Nobody writes to the disk yet, so it is quiet as soon as it is held.
    private func attachInOrder(_ export: BackupExport, _ live: LiveExport) -> Bool {
        let mailbox = shared.mailboxes[live.homeRing]
        let replies = Replies()
        mailbox.post(.hold(live.disk, replies.ticket()))
        mailbox.post(.attachJob(export, replies.ticket()))
        mailbox.post(.resume(live.disk))
        let deadline = MonotonicClock.now() + UInt64(Limits.ringMilliseconds) * 1_000_000
        var missing = 2
        while missing > 0 {
            replies.wait(until: deadline)
            guard let reply = replies.take(), reply.succeeded else { return false }
            missing -= 1
        }
        return true
    }
}
