package import Foundation
package import ServerInterface

/// The figures of `/metrics`, taken at one moment.
package struct MetricsSnapshot: Sendable {
    /// One disk that is defined.
    package struct Disk: Sendable {
        package var domain: String
        package var disk: String
        /// Nil while it is not served.
        package var status: DiskStatus?
    }
    /// What runs on one disk, over all jobs.
    package struct Backup: Sendable {
        package var domain: String
        package var disk: String
        package var readBytes: UInt64 = 0
        package var toReadBytes: UInt64 = 0
        package var preservedClusters: UInt64 = 0
        package var scratchUsedBytes: UInt64 = 0
        package var scratchLimitBytes: UInt64 = 0
        /// The least that any of them has.
        package var scratchFreeBytes: UInt64?
    }
    /// One domain, with what its jobs come to.
    package struct Domain: Sendable {
        package var domain: String
        package var lastSuccess: Date?
        package var lastFailure: Date?
        package var jobs = 0
        package var brokenJobs = 0
        package var clients = 0
        /// When the oldest of its jobs began.
        package var oldestBegin: Date?
        /// For how long one of its jobs has had no client, in seconds.
        package var idleSeconds = 0.0
    }

    package var started = Date(timeIntervalSince1970: 0)
    package var failedDisks = 0
    /// State files that are left out.
    package var stateProblems = 0
    package var domains: [Domain] = []
    package var disks: [Disk] = []
    package var backups: [Backup] = []
    /// By `starting`, `running`, `broken`, `ending`.
    package var jobs: [String: Int] = [:]
    package var begunJobs: UInt64 = 0
    /// By `completed`, `aborted`, `failed`, `cancelled`.
    package var endedJobs: [String: UInt64] = [:]
    package var holds = DurationHistogram()
    /// Bytes that clients have read of all jobs, running or not.
    package var readBytes: UInt64 = 0
    package var refusedConnections: UInt64 = 0
    package var events: [ControlEvent.Kind: UInt64] = [:]

    package init() {}
}

/// Writes the Prometheus text format, version 0.0.4.
///
/// Labels are names of domains, disks and kinds: nothing that comes and goes with every backup, and
/// none that Prometheus sets itself (`job`, `instance`).
package enum MetricsText {
    /// What HTTP calls it.
    package static let contentType = "text/plain; version=0.0.4; charset=utf-8"

    /// The whole page.
    package static func render(_ snapshot: MetricsSnapshot, version: String = "") -> String {
        var page = MetricsPage()
        page.gauge(
            "nbdpull_build_info", "Always 1; the label says which version runs.",
            [([("version", version)], 1)])
        page.gauge(
            "process_start_time_seconds", "When the server started, since the epoch.",
            [([], snapshot.started.timeIntervalSince1970)])
        page.gauge(
            "nbdpull_ready",
            "Whether the server has everything that its state directory should contain.",
            [([], snapshot.stateProblems == 0 ? 1 : 0)])
        page.gauge("nbdpull_domains", "Domains defined.", [([], Double(snapshot.domains.count))])
        page.gauge(
            "nbdpull_disks_failed", "Disks that cannot be opened now.",
            [([], Double(snapshot.failedDisks))])
        page.gauge(
            "nbdpull_state_problems", "State files that cannot be read and are left out.",
            [([], Double(snapshot.stateProblems))])
        disks(snapshot, into: &page)
        jobs(snapshot, into: &page)
        domains(snapshot, into: &page)
        backups(snapshot, into: &page)
        page.counter(
            "nbdpull_clients_refused_total",
            "Connections that were closed because a limit was reached, or TLS did not come about.",
            [
                (
                    [],
                    Double(
                        snapshot.refusedConnections &+ snapshot.events[.clientRefused, default: 0])
                )
            ])
        page.counter(
            "nbdpull_events_total", "Events logged, by kind.",
            ControlEvent.Kind.allCases.map { kind in
                ([("event", kind.rawValue)], Double(snapshot.events[kind, default: 0]))
            })
        return page.text
    }

    private static func disks(_ snapshot: MetricsSnapshot, into page: inout MetricsPage) {
        page.gauge(
            "nbdpull_disk_served", "Whether the disk is open and served to its machine.",
            snapshot.disks.map { ($0.labels, $0.status == nil ? 0 : 1) })
        let served = snapshot.disks.compactMap { disk in disk.status.map { (disk.labels, $0) } }
        func gauge(_ name: String, _ help: String, _ value: (DiskStatus) -> Double) {
            page.gauge(name, help, served.map { ($0, value($1)) })
        }
        func counter(_ name: String, _ help: String, _ value: (GuestFigures) -> UInt64) {
            page.counter(name, help, served.map { ($0, Double(value($1.figures))) })
        }
        gauge("nbdpull_disk_size_bytes", "Size of the disk.") { Double($0.sizeBytes) }
        gauge("nbdpull_disk_clients", "Connections to the live export.") { Double($0.clientCount) }
        gauge(
            "nbdpull_disk_dirty_bytes",
            "Bytes changed since the newest checkpoint, or since tracking began."
        ) { Double($0.dirtyBytes) }
        page.gauge(
            "nbdpull_disk_overwritten_last_hour_bytes",
            "What a backup job of the last hour would have kept in scratch at most.",
            served.compactMap { labels, status in
                status.overwrittenBytes.map { (labels, Double($0)) }
            })
        gauge(
            "nbdpull_disk_tracking_problem",
            "Whether something is wrong with the tracking of changes, so that checkpoints are lost."
        ) { $0.tracking?.problem == nil ? 0 : 1 }
        gauge(
            "nbdpull_disk_tracking_recovered_bytes",
            "Bytes that count as changed to be safe, after an unclean stop."
        ) { Double($0.tracking?.recoveredBytes ?? 0) }
        counter("nbdpull_disk_reads_total", "Reads that the machine has asked for.") {
            $0.readRequests
        }
        counter("nbdpull_disk_read_bytes_total", "Bytes of these reads.") { $0.readBytes }
        counter(
            "nbdpull_disk_writes_total",
            "Writes, discards and zeroings that the machine has asked for."
        ) { $0.writeRequests }
        counter("nbdpull_disk_written_bytes_total", "Bytes of these writes.") { $0.writeBytes }
        counter("nbdpull_disk_flushes_total", "Flushes that the machine has asked for.") {
            $0.flushRequests
        }
        page.histogram(
            "nbdpull_disk_copy_wait_seconds",
            "How long writes waited that came upon old content which a backup needed first.",
            served.map { ($0, $1.figures.copyWaits) })
    }

    private static func jobs(_ snapshot: MetricsSnapshot, into page: inout MetricsPage) {
        page.gauge(
            "nbdpull_jobs", "Backup jobs by state.",
            ["starting", "running", "broken", "ending"].map { state in
                ([("state", state)], Double(snapshot.jobs[state] ?? 0))
            })
        page.counter(
            "nbdpull_jobs_begun_total", "Backup jobs begun.", [([], Double(snapshot.begunJobs))])
        page.counter(
            "nbdpull_jobs_ended_total", "Backup jobs ended, by outcome.",
            ["completed", "aborted", "failed", "cancelled"].map { outcome in
                ([("outcome", outcome)], Double(snapshot.endedJobs[outcome] ?? 0))
            })
        page.histogram(
            "nbdpull_job_hold_seconds", "How long writes of machines were held at a job's begin.",
            [([], snapshot.holds)])
        page.counter(
            "nbdpull_backup_sent_bytes_total", "Bytes that backup clients have read, of all jobs.",
            [([], Double(snapshot.readBytes))])
    }

    private static func domains(_ snapshot: MetricsSnapshot, into page: inout MetricsPage) {
        func gauge(
            _ name: String, _ help: String, _ value: (MetricsSnapshot.Domain) -> Double
        ) {
            page.gauge(name, help, snapshot.domains.map { ([("domain", $0.domain)], value($0)) })
        }
        gauge(
            "nbdpull_domain_last_success_timestamp_seconds",
            "When the last good backup of the domain ended, since the epoch; 0: none is known."
        ) { $0.lastSuccess?.timeIntervalSince1970 ?? 0 }
        gauge(
            "nbdpull_domain_last_failure_timestamp_seconds",
            "When the last backup of the domain ended that failed or was cancelled; 0: none is known."
        ) { $0.lastFailure?.timeIntervalSince1970 ?? 0 }
        gauge("nbdpull_domain_jobs", "Backup jobs of the domain that have not ended.") {
            Double($0.jobs)
        }
        gauge("nbdpull_domain_jobs_broken", "Those of them that are broken.") {
            Double($0.brokenJobs)
        }
        gauge("nbdpull_domain_backup_clients", "Connections to their backup exports.") {
            Double($0.clients)
        }
        gauge(
            "nbdpull_domain_oldest_job_begin_timestamp_seconds",
            "When the oldest of them began, since the epoch; 0: there is none."
        ) { $0.oldestBegin?.timeIntervalSince1970 ?? 0 }
        gauge(
            "nbdpull_domain_job_idle_seconds", "For how long one of them has had no client."
        ) { $0.idleSeconds }
    }

    private static func backups(_ snapshot: MetricsSnapshot, into page: inout MetricsPage) {
        func gauge(
            _ name: String, _ help: String, _ value: (MetricsSnapshot.Backup) -> UInt64?
        ) {
            page.gauge(
                name, help,
                snapshot.backups.compactMap { backup in
                    value(backup).map { (backup.labels, Double($0)) }
                })
        }
        gauge(
            "nbdpull_backup_read_bytes", "Bytes that clients have read in running jobs of the disk."
        ) { $0.readBytes }
        gauge(
            "nbdpull_backup_to_read_bytes",
            "Bytes that one client has to read for each of these jobs."
        ) { $0.toReadBytes }
        gauge(
            "nbdpull_backup_preserved_clusters",
            "Clusters kept for these jobs, zero clusters included."
        ) { $0.preservedClusters }
        gauge("nbdpull_scratch_used_bytes", "Scratch bytes that hold old content.") {
            $0.scratchUsedBytes
        }
        gauge("nbdpull_scratch_limit_bytes", "Bytes that scratch could take at the job's begin.") {
            $0.scratchLimitBytes
        }
        gauge(
            "nbdpull_scratch_free_bytes", "Bytes that scratch can still take before the job breaks."
        ) { $0.scratchFreeBytes }
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
}

extension MetricsSnapshot.Disk {
    fileprivate var labels: [(String, String)] { [("domain", domain), ("disk", disk)] }
}

extension MetricsSnapshot.Backup {
    fileprivate var labels: [(String, String)] { [("domain", domain), ("disk", disk)] }
}
