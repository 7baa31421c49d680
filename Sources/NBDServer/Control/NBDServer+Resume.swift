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
    /// What tells scratch and source of its disks from others, by the disk's number, as the ledgers
    /// say.
    let nodes: [Nodes]

    struct Nodes: Sendable {
        var scratch = ""
        var source = ""
    }

    init(_ resumption: JobResumption, _ nodes: [Nodes]) {
        self.resumption = resumption
        self.nodes = nodes
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
/// `expectJobs` comes before the first disk. A disk is shown to machines only when the ledgers of
/// its jobs are attached, so the instants stay. A job is served when all its disks are there.
extension NBDServer {
    /// Takes note of the jobs that are to go on; what other jobs have left in memory is removed.
    package func expectJobs(_ jobs: [JobResumption]) async {
        let expected = jobs.map { job in
            let nodes = job.configuration.disks.indices.map { disk -> ExpectedJob.Nodes in
                let facts = try? memory(of: job, disk).leftLedger().facts
                return .init(scratch: facts?.scratch ?? "", source: facts?.source ?? "")
            }
            return ExpectedJob(job, nodes)
        }
        state.withLock { state in
            for job in expected { state.expected[job.resumption.configuration.id] = job }
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
        // In one step: a disk that comes in this moment finds it gone, and keeps no ledger.
        guard let expected = state.withLock({ $0.expected.removeValue(forKey: id) }) else { return }
        let count = expected.resumption.configuration.disks.count
        for disk in 0..<count { memory(of: expected.resumption, disk).remove() }
        let exports = Array(expected.exports.values)
        expected.scope.removeAll()
        await letGo(Parting(exports), Limits.drainMilliseconds)
        shared.watch.remove(exports.map(\.id))
        await removeScratch(Parting(exports))
    }

    private func memory(of job: JobResumption, _ disk: Int) -> JobMemory {
        JobMemory(directory: job.memory, jobID: job.configuration.id, disk: disk)
    }

    // MARK: A disk is there again

    /// Whether a job waits for the disk.
    func isExpected(_ liveExport: String) -> Bool {
        state.withLock { state in
            state.expected.values.contains { $0.resumption.liveExports.contains(liveExport) }
        }
    }

    /// Opens and judges what belongs to the jobs of a disk that is being attached; scratch that
    /// does not answer costs its job only.
    func openExpected(
        _ liveExport: String, _ source: RawSource,
        isUrgent: @escaping @Sendable () -> Bool = { false }
    ) async -> [PreparedExport] {
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
                group.addTask { await self.prepare(job.resumption, disk, source, isUrgent) }
            }
            var prepared: [PreparedExport] = []
            for await each in group { prepared.append(each) }
            return prepared
        }
    }

    private func prepare(
        _ job: JobResumption, _ disk: Int, _ source: RawSource,
        _ isUrgent: @escaping @Sendable () -> Bool
    ) async -> PreparedExport {
        let left = LeftJob(
            job, disk, memory(of: job, disk), readers: readers,
            reserved: shared.reserved)
        let found = await look(left, source, isUrgent)
        // Whoever has left serves it no more, and has not judged the job.
        if case .failure(let refusal) = found, !state.withLock(\.hasLeft) {
            // The disk is served next, without the ledger: however this server ends, no later one
            // may go on with it, whatever that one is told of scratch and source.
            memory(of: job, disk).remove()
            state.withLock { $0.expected[job.configuration.id]?.refusal = refusal.text }
        }
        return PreparedExport(jobID: job.configuration.id, disk: disk, found: found)
    }

    private func look(
        _ left: LeftJob, _ source: RawSource, _ isUrgent: @escaping @Sendable () -> Bool
    ) async -> Result<PreparedExport.Found, PreparedExport.Refusal> {
        let ledger = await looking(at: source.path, "disk '\(source.path)'", isUrgent) {
            () throws(PreparedExport.Refusal) in
            let ledger = try left.ledger()
            try left.judge(source, ledger)
            return ledger
        }
        switch ledger {
        case .failure(let refusal): return .failure(refusal)
        case .success(let ledger):
            // Without the source: scratch that hangs is to keep no machine's disk in use.
            let path = left.scratchPath
            return await looking(at: path, "scratch '\(path)'", isUrgent) {
                () throws(PreparedExport.Refusal) in
                try self.shared.flight.during(.resumingJob, left.jobID) {
                    () throws(PreparedExport.Refusal) in try left.open(ledger)
                }
            }
        }
    }

    private func looking<Value: Sendable>(
        at path: String, _ what: String, _ isUrgent: @escaping @Sendable () -> Bool,
        _ body: @escaping @Sendable () throws(PreparedExport.Refusal) -> Value
    ) async -> Result<Value, PreparedExport.Refusal> {
        let looked = await storage.run(
            at: .of(path), what: what, .begin(milliseconds: Limits.resumeMilliseconds),
            isUrgent: isUrgent, comesEarly: true
        ) { () -> Result<Result<Value, PreparedExport.Refusal>, ServerFault> in
            .success(Result { () throws(PreparedExport.Refusal) in try body() })
        }
        switch looked {
        case .success(let found): return found
        case .failure: return .failure(.init("\(what) does not answer"))
        }
    }

    /// The job of a killed server that is to go on with a file or device as its scratch; nobody
    /// holds it until the job's disk is there.
    func waitingJob(withScratch node: FileNode?) -> String? { waitingJob(node, \.scratch) }

    /// The same for one of its disks.
    func waitingJob(withSource node: FileNode?) -> String? { waitingJob(node, \.source) }

    /// The same for one of its disks that is no file of this host.
    func waitingJob(withSourceAt text: String) -> String? {
        state.withLock { state in
            state.expected.first { $0.value.nodes.contains { $0.source == text } }?.key
        }
    }

    private func waitingJob(
        _ node: FileNode?, _ part: KeyPath<ExpectedJob.Nodes, String>
    ) -> String? {
        guard let text = node?.text else { return nil }
        return state.withLock { state in
            state.expected.first { $0.value.nodes.contains { $0[keyPath: part] == text } }?.key
        }
    }

    /// The machine goes first: jobs that wait for a disk whose source is served under another name
    /// do not go on, as what is written there is not preserved.
    func refuseJobs(on source: RawSource, servedAs name: String) {
        let text = source.identity
        guard !source.isReadOnly, !text.isEmpty else { return }
        let refused = state.withLock { state -> [JobResumption] in
            var refused: [JobResumption] = []
            for (id, job) in state.expected where job.refusal == nil {
                let disk = job.nodes.indices.first {
                    job.nodes[$0].source == text && job.resumption.liveExports[$0] != name
                }
                guard let disk else { continue }
                let target = job.resumption.configuration.disks[disk].target
                state.expected[id]?.refusal = "disk '\(target)' is served as '\(name)' now"
                refused.append(job.resumption)
            }
            return refused
        }
        for job in refused {
            for disk in job.configuration.disks.indices { memory(of: job, disk).remove() }
        }
    }

    /// On a thread: the ledgers of its jobs are attached to a disk that no machine can see yet.
    func attach(_ prepared: [PreparedExport], to live: LiveExport) {
        for each in prepared {
            let attached: Result<BackupExport, PreparedExport.Refusal> =
                switch each.found {
                case .failure(let refusal): .failure(refusal)
                case .success(let found):
                    shared.flight.during(.resumingJob, each.jobID) {
                        attach(found, each, to: live)
                    }
                }
            switch attached {
            case .success(let export): enter(export, each)
            case .failure(let refusal):
                let job = state.withLock { state -> JobResumption? in
                    state.expected[each.jobID]?.refusal = refusal.text
                    return state.hasLeft ? nil : state.expected[each.jobID]?.resumption
                }
                // The disk is served without it: no later server may take it for whole.
                if let job { memory(of: job, each.disk).remove() }
            }
        }
    }

    /// A job that was given up meanwhile lets go of the disk again.
    func enter(_ export: BackupExport, _ prepared: PreparedExport) {
        let isEntered = state.withLock { state in
            guard state.expected[prepared.jobID] != nil else { return false }
            state.expected[prepared.jobID]?.exports[prepared.disk] = export
            return true
        }
        if !isEntered { withdraw(export) }
    }

    /// Nothing of an export stays on its disk or in memory; its job was given up.
    private func withdraw(_ export: BackupExport) {
        shared.watch.remove([export.id])
        shared.mailboxes[export.homeRing].post(.detachJob(export, Replies().ticket()))
        export.writer.close()
        if !state.withLock(\.hasLeft) { export.memory?.remove() }
    }

    func attach(
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
        shared.flight.name(export.id.number, "job \(export.jobID) \(export.target)")
        for (frozen, bitmap) in zip(export.bitmaps, found.left.bitmaps) { frozen.freeze(bitmap) }
        guard job.scope.add(.backup(export)) else {
            return .failure(.init("it has two exports of one name"))
        }
        shared.watch.add([export], shared)
        guard attachInOrder(export, live) else {
            withdraw(export)
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
