import Foundation

/// Whether this version can go on with what another one has in its state directory, asked while
/// that one still uses it; nothing is changed.
extension StateDirectory {
    /// Throws when something there is of a newer version, or a job that runs was begun by one whose
    /// jobs this one cannot go on with, or for a domain that it would not have: the text says what
    /// to do.
    ///
    /// `given` are the names of the domains that are given at the start.
    package static func checkCanGoOn(
        _ path: String, given: Set<String> = []
    ) throws(ControlError) {
        try checkTrust(path)
        try refuseNewerFormat(path)
        for file in stateFiles(below: path) {
            guard !StateRecord.isNewer(header: head(of: file)) else {
                throw cannotGoOn(
                    "state file '\(file)' was written by a newer version: start that one, or one that is"
                        + " newer still")
            }
        }
        let kept: [StoredDomain] = records("domain", in: path + "/domains")
        let domains = given.union(kept.map(\.name))
        let jobs: [StoredJob] = records("job", in: path + "/jobs")
        for job in jobs {
            guard job.ended == nil, job.brokenReason == nil, let kept = job.resume else { continue }
            guard kept.value?.isKnown == true else {
                throw cannotGoOn(
                    "job '\(job.id)' was begun by a version whose jobs this one cannot go on with: wait"
                        + " for its end, or end it")
            }
            guard domains.contains(job.domain) else {
                throw cannotGoOn(
                    "job '\(job.id)' runs for domain '\(job.domain)', which this server would not have: give"
                        + " it with --domain or --disk, as to the one that runs")
            }
        }
    }

    private static func cannotGoOn(_ detail: String) -> ControlError {
        ControlError(
            code: "state-not-readable", libvirtCode: 55,
            message: "Requested operation is not valid: \(detail)", httpStatus: 409)
    }

    private static func stateFiles(below path: String) -> [String] {
        guard let found = FileManager.default.enumerator(atPath: path) else { return [] }
        return found.compactMap { $0 as? String }.filter { $0.hasSuffix(".state") }
            .map { path + "/" + $0 }.sorted()
    }

    private static func head(of file: String) -> [UInt8] {
        guard SystemCalls.identity(of: file)?.kind == .regular,
            let handle = FileHandle(forReadingAtPath: file)
        else { return [] }
        defer { try? handle.close() }
        let bytes = (try? handle.read(upToCount: 128)) ?? nil
        return Array((bytes ?? Data()).prefix { $0 != UInt8(ascii: "\n") })
    }

    private static func records<Value: Decodable>(
        _ kind: String, in directory: String
    ) -> [Value] {
        stateFiles(below: directory).compactMap { file in
            guard let data = FileManager.default.contents(atPath: file) else { return nil }
            return try? StateRecord.decode(kind: kind, Value.self, from: Array(data))
        }
    }
}
