package import Foundation
import Glibc

/// How often in a row servers have crashed over one disk or job.
package struct StoredCrashes: Sendable, Hashable, Codable {
    package enum Kind: String, Sendable, Hashable, Codable { case disk, job }
    package var kind: Kind
    /// The disk's live export, or the job's id.
    package var name: String
    package var count: Int
    package var last: Date
    /// Where the last report is.
    package var report: String?

    package init(kind: Kind, name: String, count: Int, last: Date, report: String?) {
        self.kind = kind
        self.name = name
        self.count = count
        self.last = last
        self.report = report
    }
}

/// Reports of crashes, and what is set aside because of them.
extension StateDirectory {
    private var crashesPath: String { path + "/crashes" }
    /// Reports that are kept; the oldest goes first.
    private static let reportsMax = 16

    /// Where it stands that a disk or a job has crashed servers: without it, it has not.
    func crashesFile(_ kind: StoredCrashes.Kind, _ name: String) -> String {
        file(crashesPath, "\(kind.rawValue)-\(name)")
    }

    /// Which disks and jobs have crashed servers.
    func crashes() -> Contents<StoredCrashes> {
        load(kind: "crashes", StoredCrashes.self, from: crashesPath)
    }

    /// Keeps how often a disk or job has.
    func save(_ crashes: StoredCrashes) throws(ControlError) {
        try save(kind: "crashes", crashes, to: crashesFile(crashes.kind, crashes.name))
    }

    /// A disk or job has not, in a row.
    func remove(_ crashes: StoredCrashes) throws(ControlError) {
        try remove(crashesFile(crashes.kind, crashes.name), in: crashesPath)
    }

    /// Keeps a report for people; returns its file, nil when it cannot be kept.
    func keepReport(_ text: String, at time: Date) -> String? {
        let name = ISO8601.text(time).filter { $0 != ":" } + ".txt"
        let file = "\(crashesPath)/\(name)"
        do throws(SystemCalls.Failure) {
            try SystemCalls.unlink(file)
            let descriptor = try SystemCalls.open(file, flags: O_WRONLY | O_CREAT | O_EXCL)
            try SystemCalls.writeDurably(Array(text.utf8), to: descriptor)
            try SystemCalls.syncDirectory(crashesPath)
        } catch {
            return nil
        }
        let kept = (try? FileManager.default.contentsOfDirectory(atPath: crashesPath)) ?? []
        for old in kept.filter({ $0.hasSuffix(".txt") }).sorted().dropLast(Self.reportsMax) {
            _ = try? SystemCalls.unlink("\(crashesPath)/\(old)")
        }
        return file
    }
}
