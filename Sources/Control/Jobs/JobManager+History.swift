import Foundation
import ServerInterface

extension JobManager {
    /// Ended jobs kept of one domain; the oldest go first.
    package static let historyMax = 32

    /// What a domain's past holds, and whether its last job has been shown by `domjobinfo`.
    struct History: Sendable {
        /// Oldest first.
        var jobs: [JobInfo] = []
        var isLastUnread = false
    }

    /// Takes an ended job up into its domain's history; it replaces what is known of the same job.
    func keepInHistory(_ info: JobInfo) {
        guard let domain = info.domain else { return }
        var kept = history[domain] ?? History()
        kept.jobs.removeAll { $0.id == info.id }
        kept.jobs.append(info)
        kept.jobs.removeFirst(max(kept.jobs.count - Self.historyMax, 0))
        kept.isLastUnread = true
        history[domain] = kept
        saveHistory(of: domain)
    }

    /// Reads what the state directory keeps; returns a line for each file that cannot be read.
    func loadHistory(_ state: StateDirectory) -> [String] {
        let kept = state.histories()
        for record in kept.records {
            history[record.domain] = History(
                jobs: Array(record.jobs.suffix(Self.historyMax)),
                isLastUnread: record.isLastUnread && !record.jobs.isEmpty)
        }
        return note(kept.damaged)
    }

    /// The jobs that have ended, of one domain or of all: in the order of their ends.
    ///
    /// Reading them changes nothing.
    package func endedJobs(domain: String?) throws(ControlError) -> [JobInfo] {
        if let domain {
            guard let kept = history[domain] else {
                _ = try self.domain(domain)
                return []
            }
            return kept.jobs
        }
        let past = Date(timeIntervalSince1970: 0)
        return history.values.flatMap(\.jobs).sorted {
            ($0.ended ?? past, $0.id ?? "") < ($1.ended ?? past, $1.id ?? "")
        }
    }

    /// What `domjobinfo --completed` shows: the domain's last ended job, once, unless `keep`.
    ///
    /// `JobInfo.none` when there is none, or it was shown. With its id any job of the history is
    /// found, as often as it is asked for: the history itself keeps them all.
    package func completedJobInfo(
        domain name: String, job id: String?, keep: Bool
    ) throws(ControlError) -> JobInfo {
        guard let kept = history[name], let last = kept.jobs.last else {
            _ = try domain(name)
            if let id { throw .jobNotFound(id) }
            return .none
        }
        let shown: JobInfo
        if let id {
            guard let found = kept.jobs.last(where: { $0.id == id.lowercased() }) else {
                throw .jobNotFound(id)
            }
            shown = found
        } else {
            guard kept.isLastUnread else { return .none }
            shown = last
        }
        if !keep, shown.id == last.id, kept.isLastUnread {
            history[name]?.isLastUnread = false
            saveHistory(of: name)
        }
        return shown
    }

    /// Forgets everything about the domain's ended jobs, what was still to be done for them too.
    func forgetFinished(_ domain: String) {
        let hadHistory = history.removeValue(forKey: domain) != nil
        let left = unsettled.filter { $0.value.domain == domain }.map(\.key)
        do throws(ControlError) {
            if hadHistory { try state?.removeHistory(of: domain) }
            for id in left {
                try state?.removeJob(id)
                unsettled[id] = nil
            }
        } catch {
            noteStateProblem(error.message, domain: domain)
        }
    }

    private func saveHistory(of domain: String) {
        guard let kept = history[domain] else { return }
        do throws(ControlError) {
            try state?.save(
                StoredHistory(
                    domain: domain, jobs: kept.jobs, isLastUnread: kept.isLastUnread))
        } catch {
            noteStateProblem(error.message, domain: domain)
        }
    }

    /// Says that the state directory does not hold what it should; the event is all there is.
    func noteStateProblem(_ text: String, domain: String? = nil, id: String? = nil) {
        events.append(ControlEvent(.stateProblem, domain: domain, id: id, message: text))
    }

    /// What keeps the server from being what it should be, one line each; none when it is ready.
    package var problems: [String] {
        lines(unreadable.values.filter { state?.isUnreadable($0) ?? false })
    }

    /// Damaged files of one kind that are told of one by one; of more, how many there are.
    package static let damagedLinesMax = 16

    /// A line for each file, in the order of their paths, and one for those that are too many.
    private func lines(_ files: [StateDirectory.DamagedFile]) -> [String] {
        let told = files.sorted { $0.path < $1.path }
        let more = told.dropFirst(Self.damagedLinesMax)
        guard let next = more.first else { return told.map(\.text) }
        return told.prefix(Self.damagedLinesMax).map(\.text)
            + ["and \(more.count) more state files are left out, from '\(next.path)' on"]
    }

    /// The name of the domain with that name or uuid; the text itself when there is none.
    ///
    /// A name wins over a uuid.
    func name(ofDomain text: String) -> String {
        guard domains[text] == nil, let uuid = UUIDText.normalized(text) else { return text }
        return domains.values.first { $0.definition.uuid == uuid }?.definition.name ?? text
    }

    /// Notes files of the state directory that cannot be read; returns the lines that say so.
    ///
    /// They keep the server from calling itself ready until they are gone, replaced or put right.
    func note(_ files: [StateDirectory.DamagedFile]) -> [String] {
        for file in files { unreadable[file.path] = file }
        let lines = lines(files)
        for line in lines { noteStateProblem(line) }
        return lines
    }
}
