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

    /// `virsh domblklist`; columns for problems and errors appear when a disk has one.
    package static func disks(_ disks: [DiskView], details: Bool, quiet: Bool) -> String {
        let hasErrors = disks.contains { $0.errorMessage != nil }
        var head = details ? ["Type", "Device"] : []
        head += ["Target", "Source"]
        let hasProblems = details && disks.contains { $0.trackingProblem != nil }
        if details { head += ["Size", "Dirty", "Client", "URI", "Checkpoints", "Recovered"] }
        if hasProblems { head.append("Tracking Problem") }
        if hasErrors { head.append("Error") }
        let rows = disks.map { disk in
            var row = details ? [disk.type, disk.device] : []
            row += [disk.disk, disk.source ?? "-"]
            if details {
                row += [
                    disk.size.map(String.init) ?? "-", disk.dirtyBytes.map(String.init) ?? "-",
                    disk.clients.map { $0 > 0 ? "connected" : "none" } ?? "-", disk.uri ?? "-",
                    disk.checkpoints.flatMap { $0.isEmpty ? nil : $0.joined(separator: ",") }
                        ?? "-",
                    disk.recoveredBytes.map(String.init) ?? "-",
                ]
            }
            if hasProblems { row.append(disk.trackingProblem ?? "-") }
            if hasErrors { row.append(disk.errorMessage ?? "-") }
            return row
        }
        return table(head, rows, quiet: quiet)
    }

    /// The running jobs; a column for errors appears when a job has one.
    package static func jobs(_ jobs: [JobView], quiet: Bool) -> String {
        let hasErrors = jobs.contains { $0.errorMessage != nil }
        var head = ["Id", "Domain", "State", "Begun", "Exports"]
        if hasErrors { head.append("Error") }
        let rows = jobs.map { job in
            var row = [
                job.id, job.domain, job.state, ISO8601.text(job.begun),
                job.exports.map(\.name).joined(separator: ","),
            ]
            if hasErrors { row.append(job.errorMessage ?? "-") }
            return row
        }
        return table(head, rows, quiet: quiet)
    }

    /// The job's id, then the URI of every export, one per line; then the disks that are backed up
    /// in full although the client asked otherwise, and why.
    package static func begun(_ job: BegunJob) -> String {
        let fallbacks = job.exports.compactMap { export in
            export.fallbackReason.map { "disk '\(export.disk)' is backed up in full: \($0)" }
        }
        return ([job.id] + job.exports.map(\.uri) + fallbacks).joined(separator: "\n") + "\n"
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
            let checkpoint = job.checkpoint.map {
                $0 + (job.checkpointKept == true ? "" : " (gone)")
            }
            return [
                job.id ?? "-", job.domain ?? "-", job.outcome ?? "-",
                job.begun.map(ISO8601.text) ?? "-", job.ended.map(ISO8601.text) ?? "-",
                checkpoint ?? "-", job.errorMessage ?? "-",
            ]
        }
        return table(
            ["Id", "Domain", "Outcome", "Begun", "Ended", "Checkpoint", "Message"], rows,
            quiet: quiet)
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
