import Foundation
import ServerInterface

/// One backup job as the manager keeps it.
struct Job: Sendable {
    let id: String
    let domain: String
    var plan: BackupPlan
    /// The checkpoint made in the job's instant.
    let checkpoint: CheckpointMetadata?
    /// Clients may release clusters by TRIM.
    var clientRelease = false
    var state = JobState.starting
    /// For people.
    let begunAt: Date
    /// For measuring.
    let begun: ContinuousClock.Instant
    /// What the engine answered, once it did.
    var started: JobStarted?
    var exports: [ExportView] = []
    var lastReport: JobReport?
    var expiresAt: Date?
    var expiryTask: Task<Void, Never>?
    var isExpiryTold = false
    /// Why its guest could not be frozen for the instant.
    var freezeFault: ControlError?
    /// Without a client since when.
    var idle = IdleTime()
    /// The record on disk.
    var record: StoredJob
    /// Of a push: who writes its targets.
    var crew: PushCrew?

    init(
        id: String, domain: String, plan: BackupPlan, checkpoint: CheckpointMetadata?,
        record: StoredJob, begunAt: Date = Date(), age: Duration = .zero
    ) {
        self.begunAt = begunAt
        begun = ContinuousClock.now - age
        self.checkpoint = checkpoint
        self.id = id
        self.domain = domain
        self.plan = plan
        self.record = record
    }

    /// What it lacks: the next server cannot go on with it.
    var warning: String? {
        started?.notLasting.map {
            "the job ends when this server stops, crashes or is restarted, as \($0)"
        }
    }

    /// What its begin answers.
    var answer: BegunJob {
        BegunJob(
            id: id, exports: exports, targets: targetViews, checkpoint: checkpoint?.name,
            warning: warning)
    }

    var elapsedMilliseconds: UInt64 { milliseconds(ContinuousClock.now - begun) }

    var view: JobView {
        JobView(
            id: id, domain: domain, state: state.name, begun: begunAt,
            errorMessage: state.brokenReason, expires: expiresAt, exports: exports,
            checkpoint: checkpoint?.name, tls: plan.tls == true, targets: targetViews)
    }

    /// One line for people: what it serves, or writes.
    var summary: String {
        guard let targets = targetViews else {
            return "exports " + exports.map(\.name).joined(separator: ",")
        }
        return "push to " + targets.map(\.path).joined(separator: ",")
    }

    /// What a push writes; nil of a pull.
    var targetViews: [PushTargetView]? {
        guard plan.push != nil else { return nil }
        return plan.disks.compactMap { disk in
            disk.pushTarget.map {
                PushTargetView(
                    disk: disk.target, path: $0.path, format: $0.format.rawValue,
                    incremental: disk.incremental, fallbackReason: disk.fallbackReason)
            }
        }
    }

    // The workers know best what they have written.
    private func withPush(_ disks: [JobDiskView]) -> [JobDiskView] {
        guard let progress = crew?.progress else { return disks }
        return disks.map { disk in
            var disk = disk
            disk.bytesRead = progress[disk.disk]?.bytes ?? 0
            disk.bytesToRead = progress[disk.disk]?.total ?? disk.bytesToRead
            return disk
        }
    }

    /// The job's figures now; the words follow libvirt's, with `Failed` for a job that broke but
    /// has not been ended.
    func info() -> JobInfo {
        var info = JobInfo(jobType: state.brokenReason == nil ? "Unbounded" : "Failed")
        info.operation = "Backup"
        info.id = id
        info.domain = domain
        info.state = state.name
        info.begun = begunAt
        info.timeElapsed = elapsedMilliseconds
        info.errorMessage = state.brokenReason
        info.holdNanoseconds = lastReport?.holdNanoseconds ?? started?.holdNanoseconds
        info.clients = lastReport?.clientCount
        info.tls = plan.tls == true
        let disks = (lastReport?.disks.map(JobDiskView.init(report:))).map(withPush)
        info.targets = targetViews
        info.disks = disks
        info.tempUsed = disks.map { $0.map(\.scratchUsed).clampedSum } ?? 0
        info.tempTotal =
            disks.map { $0.map(\.size).clampedSum } ?? started?.diskSizes.values.clampedSum
            ?? 0
        if let report = lastReport, let disks,
            report.clientCount > 0 || plan.push != nil
                || disks.contains(where: { $0.bytesRead > 0 })
        {
            info.bytesRead = disks.map(\.progress).clampedSum
            info.bytesToRead = disks.map { $0.bytesToRead ?? 0 }.clampedSum
        }
        info.checkpoint = checkpoint?.name
        if case .ended(let outcome) = state {
            info.jobType = outcome.jobType
            info.outcome = outcome.label
            info.errorMessage = outcome.message
            info.success = outcome.isGood
            info.clients = nil
            info.tls = nil
        }
        return info
    }
}

extension JobDiskView {
    init(report: JobDiskReport) {
        self.init(
            disk: report.target, size: report.sizeBytes, scratchUsed: report.scratchUsedBytes,
            preservedClusters: report.preservedClusters, zeroClusters: report.zeroClusters,
            bytesRead: report.bytesRead, bytesToRead: report.bytesToRead)
    }
}

private func milliseconds(_ duration: Duration) -> UInt64 {
    let (seconds, attoseconds) = duration.components
    return UInt64(max(seconds, 0)) * 1000 + UInt64(max(attoseconds, 0) / 1_000_000_000_000_000)
}
