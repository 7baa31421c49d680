import Foundation
import ServerInterface

extension JobManager {
    /// The figures of this moment.
    package func snapshot() async -> MetricsSnapshot {
        var snapshot = MetricsSnapshot()
        for id in Array(jobs.keys) { await refresh(id) }
        snapshot.domains = domains.keys.sorted().map { figures(ofDomain: $0) }
        for domain in domains.values.sorted(by: { $0.definition.name < $1.definition.name }) {
            for disk in domain.definition.disks {
                var figures = MetricsSnapshot.Disk(
                    domain: domain.definition.name, disk: disk.target)
                switch domain.attachments[disk.target] {
                case .attached(let id): figures.status = try? await engine.diskStatus(id)
                case .failed: break
                case .noMedia, nil: continue
                }
                snapshot.disks.append(figures)
            }
        }
        snapshot.started = startedAt
        snapshot.failedDisks = domains.values.reduce(0) { $0 + $1.failedCount }
        snapshot.backups = backups()
        for job in jobs.values { snapshot.jobs[job.state.name, default: 0] += 1 }
        snapshot.begunJobs = begunJobs
        snapshot.endedJobs = endedCounts
        snapshot.holds = holds
        snapshot.readBytes =
            endedReadBytes &+ snapshot.backups.reduce(0) { $0 &+ $1.readBytes }
        snapshot.stateProblems = problems.count
        snapshot.refusedConnections = engine.refusedConnections
        snapshot.events = events.counts
        return snapshot
    }

    private func figures(ofDomain name: String) -> MetricsSnapshot.Domain {
        var figures = MetricsSnapshot.Domain(domain: name)
        (figures.lastSuccess, figures.lastFailure) = lastEnds(of: name)
        let running = jobs.values.filter { $0.domain == name }
        figures.jobs = running.count
        figures.brokenJobs = running.count { $0.state.brokenReason != nil }
        figures.clients = running.reduce(0) { $0 + ($1.lastReport?.clientCount ?? 0) }
        figures.oldestBegin = running.map(\.begunAt).min()
        figures.idleSeconds = running.compactMap(\.idleSeconds).max() ?? 0
        return figures
    }

    /// By disk, as several jobs may run on one.
    private func backups() -> [MetricsSnapshot.Backup] {
        var found: [String: MetricsSnapshot.Backup] = [:]
        for job in jobs.values {
            for report in job.lastReport?.disks ?? [] {
                let key = job.domain + "\n" + report.target
                var sum =
                    found[key] ?? MetricsSnapshot.Backup(domain: job.domain, disk: report.target)
                sum.readBytes &+= report.bytesRead
                sum.toReadBytes = sum.toReadBytes.clampedAdd(report.bytesToRead)
                sum.preservedClusters &+= report.preservedClusters
                sum.scratchUsedBytes = sum.scratchUsedBytes.clampedAdd(report.scratchUsedBytes)
                sum.scratchLimitBytes = sum.scratchLimitBytes.clampedAdd(report.scratchLimitBytes)
                sum.scratchFreeBytes = [sum.scratchFreeBytes, report.scratchFreeBytes]
                    .compactMap { $0 }.min()
                found[key] = sum
            }
        }
        return found.keys.sorted().compactMap { found[$0] }
    }
}

extension UInt64 {
    fileprivate func clampedAdd(_ other: UInt64) -> UInt64 { [self, other].clampedSum }
}
