import ServerInterface

/// The figures of `/metrics`, taken at one moment.
package struct MetricsSnapshot: Sendable {
    /// One disk that is served.
    package struct Disk: Sendable {
        package var domain: String
        package var disk: String
        package var sizeBytes: UInt64
        package var clients: Int
        package var dirtyBytes: UInt64
    }
    /// One job that has not ended.
    package struct Job: Sendable {
        package var view: JobView
        package var info: JobInfo
    }

    package var domains = 0
    package var failedDisks = 0
    /// State files that are left out.
    package var stateProblems = 0
    package var disks: [Disk] = []
    package var jobs: [Job] = []
    package var begunJobs: UInt64 = 0
    /// By `completed`, `aborted`, `failed`, `cancelled`.
    package var endedJobs: [String: UInt64] = [:]
    package var events: UInt64 = 0

    package init() {}
}

/// Writes the Prometheus text format, version 0.0.4.
package enum MetricsText {
    /// The whole page.
    package static func render(_ snapshot: MetricsSnapshot) -> String {
        var page = Page()
        page.gauge("nbdpull_domains", "Domains defined.", [([], Double(snapshot.domains))])
        page.gauge(
            "nbdpull_disks_failed", "Disks that cannot be opened now.",
            [([], Double(snapshot.failedDisks))])
        page.gauge(
            "nbdpull_state_problems", "State files that cannot be read and are left out.",
            [([], Double(snapshot.stateProblems))])
        let disks = snapshot.disks.map { ([("domain", $0.domain), ("disk", $0.disk)], $0) }
        page.gauge(
            "nbdpull_disk_size_bytes", "Size of the disk.",
            disks.map { ($0, Double($1.sizeBytes)) })
        page.gauge(
            "nbdpull_disk_clients", "Connections to the live export.",
            disks.map { ($0, Double($1.clients)) })
        page.gauge(
            "nbdpull_disk_dirty_bytes",
            "Bytes changed since the newest checkpoint, or since tracking began.",
            disks.map { ($0, Double($1.dirtyBytes)) })
        jobs(snapshot, into: &page)
        page.counter("nbdpull_events_total", "Events logged.", [([], Double(snapshot.events))])
        return page.text
    }

    private static func jobs(_ snapshot: MetricsSnapshot, into page: inout Page) {
        page.gauge(
            "nbdpull_jobs", "Backup jobs by state.",
            ["starting", "running", "broken", "ending"].map { state in
                (
                    [("state", state)],
                    Double(snapshot.jobs.count { $0.view.state == state })
                )
            })
        page.counter(
            "nbdpull_jobs_begun_total", "Backup jobs begun.", [([], Double(snapshot.begunJobs))])
        page.counter(
            "nbdpull_jobs_ended_total", "Backup jobs ended, by outcome.",
            ["completed", "aborted", "failed", "cancelled"].map { outcome in
                (
                    [("outcome", outcome)],
                    Double(snapshot.endedJobs[outcome] ?? 0)
                )
            })
        let jobs = snapshot.jobs.map { ([("domain", $0.view.domain), ("job", $0.view.id)], $0) }
        page.gauge(
            "nbdpull_job_clients", "Connections to the job's backup exports.",
            jobs.map { ($0, Double($1.info.clients ?? 0)) })
        page.gauge(
            "nbdpull_job_hold_seconds", "How long guest writes were held at the job's begin.",
            jobs.map { ($0, Double($1.info.holdNanoseconds ?? 0) / 1e9) })
        let disks = jobs.flatMap { labels, job in
            (job.info.disks ?? []).map { (labels + [("disk", $0.disk)], $0) }
        }
        page.gauge(
            "nbdpull_job_scratch_used_bytes", "Scratch bytes that hold old content.",
            disks.map { ($0, Double($1.scratchUsed)) })
        page.gauge(
            "nbdpull_job_preserved_clusters", "Clusters kept, zero clusters included.",
            disks.map { ($0, Double($1.preservedClusters)) })
        page.counter(
            "nbdpull_job_read_bytes_total", "Bytes sent to backup clients.",
            disks.map { ($0, Double($1.bytesRead)) })
    }

    /// A label's value between its quotes: backslash, quote and newline escaped.
    package static func escapedLabel(_ value: String) -> String {
        var result = ""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\\": result += "\\\\"
            case "\"": result += "\\\""
            case "\n": result += "\\n"
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    private struct Page {
        typealias Sample = (labels: [(String, String)], value: Double)
        var text = ""

        mutating func gauge(_ name: String, _ help: String, _ samples: [Sample]) {
            family(name, "gauge", help, samples)
        }

        mutating func counter(_ name: String, _ help: String, _ samples: [Sample]) {
            family(name, "counter", help, samples)
        }

        private mutating func family(
            _ name: String, _ type: String, _ help: String, _ samples: [Sample]
        ) {
            text += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
            for sample in samples {
                let labels = sample.labels.map { "\($0)=\"\(escapedLabel($1))\"" }
                let list = labels.isEmpty ? "" : "{\(labels.joined(separator: ","))}"
                text += "\(name)\(list) \(Self.number(sample.value))\n"
            }
        }

        private static func number(_ value: Double) -> String {
            value == value.rounded() && value.magnitude < 9e15
                ? String(Int64(value)) : String(value)
        }
    }
}

extension JobManager {
    /// The figures of this moment.
    package func snapshot() async -> MetricsSnapshot {
        var snapshot = MetricsSnapshot()
        for job in Array(jobs.values) { await refresh(job.id) }
        snapshot.jobs = jobs.values.sorted { $0.id < $1.id }.map {
            MetricsSnapshot.Job(view: $0.view, info: $0.info())
        }
        for domain in domains.values.sorted(by: { $0.definition.name < $1.definition.name }) {
            for disk in domain.definition.disks {
                guard case .attached(let id) = domain.attachments[disk.target],
                    let status = try? await engine.diskStatus(id)
                else { continue }
                snapshot.disks.append(
                    MetricsSnapshot.Disk(
                        domain: domain.definition.name, disk: disk.target,
                        sizeBytes: status.sizeBytes, clients: status.clientCount,
                        dirtyBytes: status.dirtyBytes))
            }
        }
        snapshot.domains = domains.count
        snapshot.failedDisks = domains.values.reduce(0) { $0 + $1.failedCount }
        snapshot.begunJobs = begunJobs
        snapshot.endedJobs = endedCounts
        snapshot.stateProblems = problems.count
        snapshot.events = events.totalCount
        return snapshot
    }
}
