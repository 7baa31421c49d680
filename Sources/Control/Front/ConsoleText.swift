import Foundation

/// The command line's output in the shapes of virsh.
package enum ConsoleText {
    /// A table: one leading space, columns three spaces apart, a rule below the head.
    ///
    /// `quiet` leaves out head and rule, as `virsh -q` does.
    package static func table(_ head: [String], _ rows: [[String]], quiet: Bool = false) -> String {
        let widths = head.indices.map { column in
            let cells = (quiet ? [] : [head]) + rows
            return cells.map { $0[column].count }.max() ?? 0
        }
        func line(_ cells: [String]) -> String {
            let padded = zip(cells, widths).map { cell, width in
                cell + String(repeating: " ", count: width - cell.count)
            }
            var text = " " + padded.joined(separator: "   ")
            while text.last == " " { text.removeLast() }
            return text + "\n"
        }
        let body = rows.map(line).joined()
        guard !quiet else { return body }
        let rule = String(repeating: "-", count: widths.reduce(0, +) + 3 * widths.count)
        return line(head) + rule + "\n" + body + "\n"
    }

    /// `virsh list`, with the disks and jobs of each domain.
    package static func domains(_ domains: [DomainView], quiet: Bool) -> String {
        table(
            ["Id", "Name", "State", "Disks", "Jobs"],
            domains.map {
                let state = $0.failedDisks == 0 ? "running" : "degraded"
                return ["-", $0.domain, state, String($0.disks), String($0.jobs)]
            }, quiet: quiet)
    }

    /// `virsh domblklist`; with details, sizes and what else there is to know of each disk.
    package static func disks(_ disks: [DiskView], details: Bool, quiet: Bool) -> String {
        guard details else {
            let hasErrors = disks.contains { $0.errorMessage != nil }
            return table(
                ["Target", "Source"] + (hasErrors ? ["Error"] : []),
                disks.map {
                    [$0.disk, $0.source ?? "-"] + (hasErrors ? [$0.errorMessage ?? "-"] : [])
                }, quiet: quiet)
        }
        let rows = disks.map { disk in
            Row(
                cells: [
                    disk.type, disk.device, disk.disk, disk.source ?? "-",
                    disk.size.map(size) ?? "-", disk.dirtyBytes.map(size) ?? "-",
                    disk.clients.map { $0 > 0 ? "connected" : "none" } ?? "-",
                ], details: Self.details(of: disk))
        }
        // The first four are virsh's.
        let head = ["Type", "Device", "Target", "Source", "Size", "Dirty", "Client"]
        return list(head, rows, movable: [3], quiet: quiet)
    }

    private static func details(of disk: DiskView) -> [(label: String, text: String)] {
        var details: [(label: String, text: String)] = []
        if let uri = disk.uri { details.append(("URI", uri)) }
        if let socket = disk.vhostSocket { details.append(("Vhost Socket", socket)) }
        if let names = disk.checkpoints, !names.isEmpty {
            details.append(("Checkpoints", names.joined(separator: ", ")))
        }
        if let overwritten = disk.overwrittenLastHour, overwritten > 0 {
            details.append(("Overwritten", "\(size(overwritten)) within the last hour"))
        }
        if let recovered = disk.recoveredBytes, recovered > 0 {
            details.append(
                ("Recovered", "\(size(recovered)) count as changed, after an unclean stop"))
        }
        if let problem = disk.trackingProblem { details.append(("Tracking Problem", problem)) }
        if let error = disk.errorMessage { details.append(("Error", error)) }
        return details
    }

    /// More export names than fit into this stand below their job.
    private static let exportsWidthMax = 20

    /// The running jobs; below a job stands why it broke.
    package static func jobs(_ jobs: [JobView], quiet: Bool) -> String {
        let rows = jobs.map { job in
            var details: [(label: String, text: String)] = []
            let names = job.targets.map { $0.map(\.disk) } ?? job.exports.map(\.name)
            if let targets = job.targets {
                details.append(("Push to", targets.map(\.path).joined(separator: ", ")))
            }
            var exports = names.joined(separator: ",")
            if exports.count > exportsWidthMax {
                exports = "\(names.count) disks"
                details.append(("Exports", names.joined(separator: ", ")))
            }
            if let message = job.errorMessage { details.append(("Error", message)) }
            return Row(
                cells: [job.id, job.domain, job.state, time(job.begun), exports],
                details: details)
        }
        return list(
            ["Id", "Domain", "State", "Begun", "Exports"], rows, movable: [1, 3, 4], quiet: quiet)
    }

    /// The job's id, then the URI of every export, one per line; then the disks that are backed up
    /// in full although the client asked otherwise, and why.
    package static func begun(_ job: BegunJob) -> String {
        let fallbacks = job.exports.compactMap { export in
            export.fallbackReason.map { "disk '\(export.disk)' is backed up in full: \($0)" }
        }
        let targets = job.targets ?? []
        let full = targets.compactMap { target in
            target.fallbackReason.map { "disk '\(target.disk)' is backed up in full: \($0)" }
        }
        let places = job.exports.map(\.uri) + targets.map(\.path)
        return ([job.id] + places + fallbacks + full).joined(separator: "\n") + "\n"
    }

    /// `virsh domjobinfo`, and how long guest writes were held when the job began.
    package static func jobInfo(_ info: JobInfo) -> String {
        var text = field("Job type:", info.jobType)
        if let operation = info.operation { text += field("Operation:", operation) }
        if let elapsed = info.timeElapsed {
            text += field("Time elapsed:", padded(String(elapsed), 12) + " ms")
        }
        if let read = info.bytesRead, let total = info.bytesToRead {
            text += field("File processed:", capacity(read))
            text += field("File remaining:", capacity(total - min(read, total)))
            text += field("File total:", capacity(total))
        }
        if let used = info.tempUsed {
            text += field("Temporary disk space use:", capacity(used))
        }
        if let total = info.tempTotal {
            text += field("Temporary disk space total:", capacity(total))
        }
        if let hold = info.holdNanoseconds {
            text += field("Writes held:", padded(String((hold + 500) / 1000), 12) + " us")
        }
        if let message = info.errorMessage { text += field("Error message:", message) }
        return text + "\n"
    }

    /// Bytes in binary units with three decimals: `1.000 GiB`.
    package static func capacity(_ bytes: UInt64) -> String {
        var value = Double(bytes)
        var unit = "B"
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] where value >= 1024 {
            value /= 1024
            unit = next
        }
        let thousandths = UInt64((value * 1000).rounded())
        let fraction = String(thousandths % 1000)
        let zeros = String(repeating: "0", count: 3 - fraction.count)
        return "\(thousandths / 1000).\(zeros)\(fraction) \(unit)"
    }

    private static func field(_ label: String, _ value: String) -> String {
        padded(label, 17) + " " + value + "\n"
    }

    private static func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(width - text.count, 0))
    }
}

extension ConsoleText {
    /// `backup-list --completed`: the jobs that have ended, oldest first.
    package static func endedJobs(_ jobs: [JobInfo], quiet: Bool) -> String {
        let rows = jobs.map { job in
            var details: [(label: String, text: String)] = []
            if let checkpoint = job.checkpoint {
                details.append(
                    ("Checkpoint", checkpoint + (job.checkpointKept == true ? "" : " (gone)")))
            }
            if let message = job.errorMessage { details.append(("Message", message)) }
            let took = job.begun.flatMap { begun in
                job.ended.map { duration($0.timeIntervalSince(begun)) }
            }
            return Row(
                cells: [
                    job.id ?? "-", job.domain ?? "-", job.outcome ?? "-",
                    job.begun.map { time($0) } ?? "-", took ?? "-",
                ], details: details)
        }
        return list(
            ["Id", "Domain", "Outcome", "Begun", "Took"], rows, movable: [1, 3], quiet: quiet)
    }

    /// `virsh domjobinfo --rawstats`: libvirt's numbers and names.
    package static func rawJobInfo(_ info: JobInfo) -> String {
        let types = ["None": 0, "Unbounded": 2, "Completed": 3, "Failed": 4, "Cancelled": 5]
        var text = "Job type: \(types[info.jobType] ?? 0)\n\n"
        guard info.operation != nil else { return text }
        var values = [("operation", "9")]
        values.append(("time_elapsed", String(info.timeElapsed ?? 0)))
        if let read = info.bytesRead, let total = info.bytesToRead {
            values.append(("disk_total", String(total)))
            values.append(("disk_processed", String(read)))
            values.append(("disk_remaining", String(total - min(read, total))))
        }
        if let used = info.tempUsed { values.append(("disk_temp_used", String(used))) }
        if let total = info.tempTotal { values.append(("disk_temp_total", String(total))) }
        if let success = info.success { values.append(("success", success ? "yes" : "no")) }
        if let message = info.errorMessage { values.append(("errmsg", message)) }
        text += values.map { "\($0): \($1)\n" }.joined()
        return text + "\n"
    }
}
