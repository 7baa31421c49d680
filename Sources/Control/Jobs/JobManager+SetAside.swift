import Foundation
import ServerInterface

/// A crash of the server is reported by the next one. A disk or a job over which servers crash
/// again and again is set aside, so that the others are served.
extension JobManager {
    /// Crashes in a row after which a disk or job is set aside.
    private static let crashesMax = 3
    /// A server that lived longer has not crashed over what it had to do at its start, in seconds.
    private static let rowSeconds: UInt64 = 300

    /// Takes note of how the last server ended, before anything is opened; a line for each thing to
    /// be told.
    func noteLastCrash() -> [String] {
        guard let state else { return [] }
        let crash = engine.lastCrash
        let kept = state.crashes()
        var lines = note(kept.damaged)
        var known: StoredCrashes?
        for record in kept.records {
            if record.isOver(crash?.subject) {
                known = record
            } else if record.count >= Self.crashesMax {
                setAside(record)
            } else {
                // Not in a row.
                lines += forget(record, state)
            }
        }
        guard let crash else { return lines }
        let time = Date(timeIntervalSince1970: Double(crash.time) / 1e9)
        let report = state.keepReport(Self.text(crash, time), at: time)
        let place = report.map { ", report '\($0)'" } ?? ""
        let who = crash.isNewcomers ? "a server that was to take over" : "the last server"
        lines.append("\(who) crashed: \(crash.summary)\(place)")
        let told = (crash.isNewcomers ? "\(who): " : "") + crash.summary + place
        events.append(ControlEvent(.serverCrashed, message: told))
        guard settings.countsCrashes, var record = StoredCrashes(crash.subject) else {
            return lines
        }
        let count = known?.count ?? 0
        let isInRow = crash.secondsServed <= Self.rowSeconds || count >= Self.crashesMax
        record.count = isInRow ? count + 1 : 1
        record.last = time
        record.report = report
        do throws(ControlError) {
            try state.save(record)
        } catch {
            lines.append(error.message)
        }
        if record.count >= Self.crashesMax { setAside(record) }
        return lines
    }

    private func forget(_ record: StoredCrashes, _ state: StateDirectory) -> [String] {
        do throws(ControlError) {
            try state.remove(record)
            return []
        } catch {
            return [error.message]
        }
    }

    private func setAside(_ record: StoredCrashes) {
        let reason = reason(record)
        switch record.kind {
        case .disk:
            disksAside[record.name] = reason
            events.append(ControlEvent(.setAside, name: record.name, message: reason))
        case .job:
            jobsAside[record.name] = reason
            events.append(ControlEvent(.setAside, id: record.name, message: reason))
            // It fails now, and cannot come back.
            guard let state else { return }
            for line in forget(record, state) { noteStateProblem(line) }
        }
    }

    private func reason(_ record: StoredCrashes) -> String {
        let report = record.report.map { " (report '\($0)')" } ?? ""
        let back =
            switch record.kind {
            case .job: ""
            case .disk:
                state.map {
                    "; to serve it again remove '\($0.crashesFile(record.kind, record.name))' and"
                        + " restart the server"
                } ?? ""
            }
        let times = "\(record.count) times in a row"
        return "set aside: the server crashed \(times) over it\(report)\(back)"
    }

    /// Why a disk is not opened although it could be; nil for one that is.
    func reasonAside(_ disk: DomainDisk, of definition: DomainDefinition) -> String? {
        guard !disksAside.isEmpty else { return nil }
        return nameAside(definition.liveExportName(target: disk.target)).flatMap { disksAside[$0] }
    }

    private func nameAside(_ export: String) -> String? {
        disksAside.keys.first { CrashReport.Subject.mayBe($0, export) }
    }

    /// Somebody attaches the disk anew: it is served again.
    func bringBack(_ export: String) {
        guard let name = nameAside(export) else { return }
        disksAside[name] = nil
        guard let state else { return }
        let record = StoredCrashes(kind: .disk, name: name, count: 0, last: Date(), report: nil)
        for line in forget(record, state) { noteStateProblem(line) }
    }

    private static func text(_ crash: CrashReport, _ time: Date) -> String {
        var lines = [
            "nbdpull \(crash.build) crashed: \(crash.summary)",
            "time: \(ISO8601.text(time)), \(crash.secondsServed) s after its start",
            "process: \(crash.processID), thread: \(crash.thread)",
            "instruction: \(crash.program) from where the program was loaded, address: 0x"
                + String(crash.address, radix: 16),
        ]
        if !crash.doing.isEmpty { lines.append("doing: \(crash.doing)") }
        lines += crash.others.map { "another thread: \($0)" }
        return lines.joined(separator: "\n") + "\n"
    }
}

extension StoredCrashes {
    fileprivate init?(_ subject: CrashReport.Subject?) {
        switch subject {
        case nil: return nil
        case .disk(let export):
            self.init(kind: .disk, name: export, count: 0, last: Date(), report: nil)
        case .job(let id): self.init(kind: .job, name: id, count: 0, last: Date(), report: nil)
        }
    }

    fileprivate func isOver(_ subject: CrashReport.Subject?) -> Bool {
        switch subject {
        case nil: false
        case .disk(let export): kind == .disk && name == export
        case .job(let id): kind == .job && name == id
        }
    }
}
