import Foundation
import ServerInterface

/// What the page shows: the server, its domains, jobs and history at one moment.
struct OverviewBody: Sendable, Encodable {
    struct Server: Sendable, Encodable {
        var version: String
        var started: Date
        var now: Date
        var ready: Bool
        var problems: [String]
        /// The newest event's number.
        var events: UInt64
    }

    struct Disk: Sendable, Encodable {
        var disk: String
        var device: String
        var readOnly: Bool
        var size: UInt64?
        var vhostSocket: String?
        var clients: Int?
        var dirtyBytes: UInt64?
        var checkpoints: [String]?
        var recoveredBytes: UInt64?
        var trackingProblem: String?
        var errorMessage: String?
        var reads: UInt64?
        var readBytes: UInt64?
        var writes: UInt64?
        var writtenBytes: UInt64?
    }

    struct Domain: Sendable, Encodable {
        var domain: String
        var uuid: String
        var disks: [Disk]
        var lastSuccess: Date?
        var lastFailure: Date?
    }

    struct JobDisk: Sendable, Encodable {
        var disk: String
        var size: UInt64
        var incremental: Bool
        var bytesRead: UInt64
        var bytesToRead: UInt64
        var scratchUsed: UInt64
        var scratchLimit: UInt64
        var scratchFree: UInt64?
        var preservedClusters: UInt64
    }

    struct Job: Sendable, Encodable {
        var id: String
        var domain: String
        var state: String
        var begun: Date
        var expires: Date?
        var errorMessage: String?
        var checkpoint: String?
        var tls: Bool
        var clients: Int
        var idleSeconds: Double?
        var holdNanoseconds: UInt64?
        var disks: [JobDisk]
    }

    struct Past: Sendable, Encodable {
        var id: String
        var domain: String
        var outcome: String
        var success: Bool
        var begun: Date?
        var ended: Date?
        var bytesRead: UInt64?
        var checkpoint: String?
        var errorMessage: String?
    }

    var server: Server
    var domains: [Domain]
    var jobs: [Job]
    /// Newest first.
    var history: [Past]
}

/// The picture of a disk.
///
/// Cells are written as text, one character each, so that a thousand of them are a kilobyte.
struct MapBody: Sendable, Encodable {
    struct Job: Sendable, Encodable {
        var id: String
        /// `1`: preserved in scratch; `0`: not.
        var preserved: String
        /// `1`: read by a client; `0`: not.
        var read: String
    }

    var size: UInt64
    var cellBytes: UInt64
    var cells: Int
    /// `1`: data; `0`: a hole; absent while the storage has not said.
    var data: String?
    /// Oldest first.
    var checkpoints: [String]
    /// By cell, the newest checkpoint since which it was changed, counted from 1; 0: none.
    var changed: [Int]?
    var jobs: [Job]

    init(_ map: DiskMap) {
        size = map.sizeBytes
        cellBytes = map.geometry.cellBytes
        cells = map.geometry.count
        data = map.data.map(Self.text)
        checkpoints = map.checkpoints
        changed = map.changed
        jobs = map.jobs.map {
            Job(id: $0.id, preserved: Self.text($0.preserved), read: Self.text($0.read))
        }
    }

    private static func text(_ cells: [Bool]) -> String {
        String(decoding: cells.map { $0 ? UInt8(ascii: "1") : UInt8(ascii: "0") }, as: UTF8.self)
    }
}

extension JobManager {
    /// Whether a domain has a disk of this target.
    func hasDisk(_ target: String, of domain: String) -> Bool {
        domains[domain]?.definition.disks.contains { $0.target == target } ?? false
    }

    /// The picture of a disk that is served.
    func map(of target: String, in domain: String) async throws(ControlError) -> MapBody {
        guard case .attached(let id) = try self.domain(domain).attachments[target] else {
            throw .diskNotAttached(target)
        }
        do throws(ServerFault) {
            return MapBody(try await engine.diskMap(id))
        } catch {
            throw controlError(from: error)
        }
    }

    /// Everything that the page shows but pictures and events.
    func overview(version: String) async -> OverviewBody {
        for id in Array(jobs.keys) { await refresh(id) }
        var shown: [OverviewBody.Domain] = []
        for domain in domains.values.sorted(by: { $0.definition.name < $1.definition.name }) {
            shown.append(await overview(of: domain))
        }
        let problems = problems
        return OverviewBody(
            server: .init(
                version: version, started: startedAt, now: Date(), ready: problems.isEmpty,
                problems: problems, events: events.totalCount),
            domains: shown,
            jobs: jobs.values.sorted { ($0.begunAt, $0.id) < ($1.begunAt, $1.id) }
                .map { OverviewBody.Job($0) },
            history: past())
    }

    private func past() -> [OverviewBody.Past] {
        let ended = (try? endedJobs(domain: nil)) ?? []
        return ended.suffix(MonitorLimits.historyMax).reversed().map { info in
            OverviewBody.Past(
                id: info.id ?? "", domain: info.domain ?? "", outcome: info.outcome ?? "",
                success: info.success ?? false, begun: info.begun, ended: info.ended,
                bytesRead: info.bytesRead, checkpoint: info.checkpoint,
                errorMessage: info.errorMessage)
        }
    }

    private func overview(of domain: ManagedDomain) async -> OverviewBody.Domain {
        var disks: [OverviewBody.Disk] = []
        for disk in domain.definition.disks {
            let view = await view(of: disk, in: domain)
            var shown = OverviewBody.Disk(
                disk: view.disk, device: view.device, readOnly: view.readOnly, size: view.size,
                vhostSocket: view.vhostSocket, clients: view.clients, dirtyBytes: view.dirtyBytes,
                checkpoints: view.checkpoints, recoveredBytes: view.recoveredBytes,
                trackingProblem: view.trackingProblem, errorMessage: view.errorMessage)
            if case .attached(let id) = domain.attachments[disk.target],
                let figures = try? await engine.diskStatus(id).figures
            {
                shown.reads = figures.readRequests
                shown.readBytes = figures.readBytes
                shown.writes = figures.writeRequests
                shown.writtenBytes = figures.writeBytes
            }
            disks.append(shown)
        }
        let stamps = lastEnds(of: domain.definition.name)
        return OverviewBody.Domain(
            domain: domain.definition.name, uuid: domain.definition.uuid, disks: disks,
            lastSuccess: stamps.success, lastFailure: stamps.failure)
    }

    /// When a domain's last good backup ended, and its last one that was none.
    func lastEnds(of domain: String) -> (success: Date?, failure: Date?) {
        let jobs = history[domain]?.jobs ?? []
        return (
            jobs.last { $0.success == true }?.ended, jobs.last { $0.success != true }?.ended
        )
    }
}

extension OverviewBody.Job {
    init(_ job: Control.Job) {
        let incremental = Set(job.exports.filter { $0.bitmap != nil }.map(\.disk))
        self.init(
            id: job.id, domain: job.domain, state: job.state.name, begun: job.begunAt,
            expires: job.expiresAt, errorMessage: job.state.brokenReason,
            checkpoint: job.checkpoint?.name, tls: job.plan.tls == true,
            clients: job.lastReport?.clientCount ?? 0, idleSeconds: job.idleSeconds,
            holdNanoseconds: job.lastReport?.holdNanoseconds ?? job.started?.holdNanoseconds,
            disks: (job.lastReport?.disks ?? []).map { report in
                OverviewBody.JobDisk(
                    disk: report.target, size: report.sizeBytes,
                    incremental: incremental.contains(report.target),
                    bytesRead: report.bytesRead, bytesToRead: report.bytesToRead,
                    scratchUsed: report.scratchUsedBytes, scratchLimit: report.scratchLimitBytes,
                    scratchFree: report.scratchFreeBytes,
                    preservedClusters: report.preservedClusters)
            })
    }
}
