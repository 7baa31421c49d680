import BoundedCalls
import Foundation
import Glibc
import ServerInterface

/// The directory that outlives the server: its lock, one file per domain, one per running job, one
/// per checkpoint, one per domain for the jobs that have ended, and the change tracking of every
/// disk.
///
/// Every write goes to a temporary file, is made durable, and replaces the old file in one step:
/// after a crash each file is whole, old or new. A damaged file costs only itself, and one that a
/// later version wrote is never replaced or removed. Calls block for the time of a few fsyncs.
package final class StateDirectory: Sendable {
    /// A file that is not a valid record.
    package struct DamagedFile: Error, Sendable, Hashable {
        package let path: String
        package let detail: String
        /// A later version wrote it.
        package var isNewer = false

        /// The name that the file's name encodes.
        package var name: String {
            let name = (path as NSString).lastPathComponent
            let stem = name.hasSuffix(".state") ? String(name.dropLast(".state".count)) : name
            return stem.removingPercentEncoding ?? stem
        }

        /// One line for people: what is wrong, and what to do.
        package var text: String {
            guard isNewer else { return "state file '\(path)' is left out: \(detail)" }
            return "state file '\(path)' was written by a newer version: \(detail). It is neither "
                + "read nor changed: start the newer version again, or move the file away to go "
                + "on without what it holds"
        }
    }

    /// The contents of a directory of records.
    package struct Contents<Value: Sendable>: Sendable {
        package var records: [Value] = []
        package var damaged: [DamagedFile] = []
    }

    package let path: String
    private static let parts = [
        "domains", "jobs", "history", "checkpoints", "disks", "frozen", "crashes", "moves",
    ]
    private let lock: SystemCalls.Descriptor

    /// What no disk and no scratch may be: the files below the state directory that are the
    /// server's.
    ///
    /// Other files may lie beside them.
    package static func ownPaths(in path: String) -> [String] {
        (["lock"] + parts).map { path + "/" + $0 }
    }

    var domainsPath: String { path + "/domains" }
    private var jobsPath: String { path + "/jobs" }
    private var historyPath: String { path + "/history" }

    /// Creates the directory when it is missing and takes its lock.
    ///
    /// Throws when another server holds the lock, when a newer version has used the directory, or
    /// when it cannot be made or written; the text names it.
    package init(path: String) throws(ControlError) {
        self.path = path
        do {
            for directory in [path] + Self.parts.map({ path + "/" + $0 }) {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true,
                    attributes: [.posixPermissions: 0o700])
            }
        } catch {
            throw Self.unusable(path, "it cannot be created: \(error.localizedDescription)")
        }
        try Self.checkTrust(path)
        do {
            lock = try SystemCalls.open(path + "/lock", flags: O_RDWR | O_CREAT)
            try Self.lockPatiently(lock)
        } catch {
            if error.wouldBlock {
                throw ControlError(
                    code: "state-directory-locked", libvirtCode: 55,
                    message: "Requested operation is not valid: another server uses the state "
                        + "directory '\(path)': stop it, or give this one another --state-dir",
                    httpStatus: 409)
            }
            throw Self.unusable(path, error.text)
        }
        try Self.checkFormat(path)
    }

    /// Refuses a directory in which others could replace files.
    static func checkTrust(_ path: String) throws(ControlError) {
        guard let facts = SystemCalls.trustFacts(of: path),
            let refusal = DirectoryTrust.refusal(facts, user: SystemCalls.userID)
        else { return }
        throw unusable(path, refusal)
    }

    /// A server that was killed holds the lock until the kernel has ended it.
    private static func lockPatiently(
        _ lock: borrowing SystemCalls.Descriptor
    ) throws(SystemCalls.Failure) {
        try Patience.outwait(
            nanoseconds: lockNanoseconds,
            while: { (fault: SystemCalls.Failure) in fault.wouldBlock }
        ) { () throws(SystemCalls.Failure) in try SystemCalls.lockExclusively(lock) }
    }

    private static let lockNanoseconds: UInt64 = 2_000_000_000

    /// Lets another server use the directory; nothing more may be written through this object.
    ///
    /// A process with a thread that hangs in the kernel keeps its descriptors after its end.
    package func release() { SystemCalls.unlock(lock) }

    /// Keeps a job's record, replacing the one of the same id.
    package func save(_ job: StoredJob) throws(ControlError) {
        try save(kind: "job", job, to: file(jobsPath, job.id))
    }

    /// Replaces a job's record with one that says more.
    ///
    /// Outlives the process. After a loss of power either of the two may be there, whole.
    package func update(_ job: StoredJob) throws(ControlError) {
        let target = file(jobsPath, job.id)
        try commit(try stage(kind: "job", job, for: target), isDurable: false)
    }

    /// Forgets a job.
    package func removeJob(_ id: String) throws(ControlError) {
        try remove(file(jobsPath, id), in: jobsPath)
    }

    /// Every job kept: those that a crash or a stop cut off.
    package func jobs() -> Contents<StoredJob> {
        load(kind: "job", StoredJob.self, from: jobsPath)
    }

    /// Puts a job's record that cannot be read out of the way, so that it is met only once;
    /// `syncJobs` makes that last.
    package func setAside(_ file: DamagedFile) throws(ControlError) {
        do {
            try SystemCalls.rename(file.path, to: file.path + ".damaged")
        } catch {
            throw Self.cannotWrite(file.path, error.text)
        }
    }

    /// Makes it last that records of jobs were set aside.
    package func syncJobs() throws(ControlError) {
        do {
            try SystemCalls.syncDirectory(jobsPath)
        } catch {
            throw Self.cannotWrite(jobsPath, error.text)
        }
    }

    /// Whether a file that could not be read still cannot be.
    package func isUnreadable(_ file: DamagedFile) -> Bool {
        guard file.path.hasSuffix(".state") else {
            return (try? FileManager.default.contentsOfDirectory(atPath: file.path)) == nil
        }
        guard SystemCalls.identity(of: file.path) != nil else { return false }
        return !((try? StateRecord.isWhole(Self.read(file.path))) ?? false)
    }

    /// Keeps a domain's ended jobs.
    ///
    /// The last one may be missing after a loss of power.
    package func save(_ history: StoredHistory) throws(ControlError) {
        let target = file(historyPath, history.domain)
        try commit(try stage(kind: "history", history, for: target), isDurable: false)
    }

    /// Forgets a domain's ended jobs.
    package func removeHistory(of domain: String) throws(ControlError) {
        try remove(file(historyPath, domain), in: historyPath)
    }

    /// The ended jobs of every domain.
    package func histories() -> Contents<StoredHistory> {
        load(kind: "history", StoredHistory.self, from: historyPath)
    }

    // Percent-encoding makes any name a file name; a leading dot would hide it from the loader.
    func file(_ directory: String, _ name: String) -> String {
        let encoded = ExportURI.encoded(name).map { character in
            switch character {
            case "/": "%2F"
            case ".": "%2E"
            default: String(character)
            }
        }.joined()
        guard encoded.utf8.count > Self.encodedBytesMax else {
            return "\(directory)/\(encoded).state"
        }
        // The file itself also says what it is about.
        let hash = String(StableHash(encoded).value, radix: 16)
        return "\(directory)/\(encoded.prefix(150))~\(hash).state"
    }

    /// A longer name is cut, so that the file's own fits 255 bytes with every ending.
    private static let encodedBytesMax = 230

    func save(
        kind: String, _ value: some Encodable, to target: String
    ) throws(ControlError) {
        try commit(try stage(kind: kind, value, for: target))
    }

    /// A file that is durable beside the one that it will replace.
    package struct StagedFile: Sendable {
        let temporary: String
        let target: String
    }

    func stage(
        kind: String, _ value: some Encodable, for target: String
    ) throws(ControlError) -> StagedFile {
        let temporary = target + ".new"
        try refuseNewer(target)
        do {
            let bytes = try StateRecord.encode(kind: kind, value)
            try SystemCalls.unlink(temporary)
            let descriptor = try SystemCalls.open(temporary, flags: O_WRONLY | O_CREAT | O_EXCL)
            try SystemCalls.writeDurably(bytes, to: descriptor)
            return StagedFile(temporary: temporary, target: target)
        } catch let failure as SystemCalls.Failure {
            _ = try? SystemCalls.unlink(temporary)
            throw Self.cannotWrite(target, failure.text)
        } catch {
            throw Self.cannotWrite(target, "\(error)")
        }
    }

    /// Throws when a later version wrote the file: what it knows must not be lost.
    func refuseNewer(_ target: String) throws(ControlError) {
        guard let handle = FileHandle(forReadingAtPath: target) else { return }
        defer { try? handle.close() }
        guard let head = try? handle.read(upToCount: 128),
            StateRecord.isNewer(header: head.prefix { $0 != UInt8(ascii: "\n") })
        else { return }
        throw Self.cannotWrite(
            target, "a newer version wrote it: start that again, or move the file away")
    }

    /// Puts a staged file in its place.
    ///
    /// Without `isDurable` a loss of power soon after may leave the file that was there before.
    package func commit(_ staged: StagedFile, isDurable: Bool = true) throws(ControlError) {
        do throws(SystemCalls.Failure) {
            try SystemCalls.rename(staged.temporary, to: staged.target)
            guard isDurable else { return }
            try SystemCalls.syncDirectory((staged.target as NSString).deletingLastPathComponent)
        } catch {
            discard(staged)
            throw Self.cannotWrite(staged.target, error.text)
        }
    }

    /// Gives a staged file up; one that stays is replaced by the next.
    package func discard(_ staged: StagedFile) { _ = try? SystemCalls.unlink(staged.temporary) }

    func remove(_ target: String, in directory: String) throws(ControlError) {
        try refuseNewer(target)
        do {
            if try SystemCalls.unlink(target) { try SystemCalls.syncDirectory(directory) }
        } catch {
            throw Self.cannotWrite(target, error.text)
        }
    }

    func load<Value: Decodable & Sendable>(
        kind: String, _ type: Value.Type, from directory: String
    ) -> Contents<Value> {
        var contents = Contents<Value>()
        load(kind: kind, type, from: directory, into: &contents.damaged) { _, value in
            contents.records.append(value)
        }
        return contents
    }

    /// Hands out every record of a directory with its file's path, in the order of these.
    func load<Value: Decodable>(
        kind: String, _ type: Value.Type, from directory: String,
        into damaged: inout [DamagedFile], _ take: (String, Value) -> Void
    ) {
        let names: [String]
        do {
            names = try FileManager.default.contentsOfDirectory(atPath: directory).sorted()
        } catch {
            damaged.append(DamagedFile(path: directory, detail: error.localizedDescription))
            return
        }
        for name in names where name.hasSuffix(".state") {
            let path = "\(directory)/\(name)"
            do {
                take(path, try StateRecord.decode(kind: kind, type, from: try Self.read(path)))
            } catch {
                damaged.append(
                    DamagedFile(path: path, detail: error.detail, isNewer: error.isNewer))
            }
        }
    }

    static func read(_ path: String) throws(StateRecord.Damage) -> [UInt8] {
        // Opening a pipe would wait for its writer.
        guard SystemCalls.identity(of: path)?.kind == .regular else {
            throw StateRecord.Damage(detail: "it is not a regular file")
        }
        let bytes: [UInt8]
        do throws(SystemCalls.Failure) {
            bytes = try SystemCalls.read(path, upTo: StateRecord.bytesMax + 1)
        } catch {
            throw StateRecord.Damage(detail: "it cannot be read: \(error.text)")
        }
        guard bytes.count <= StateRecord.bytesMax else {
            throw StateRecord.Damage(detail: "it is larger than any record")
        }
        return bytes
    }

    private static func unusable(_ path: String, _ detail: String) -> ControlError {
        ControlError(
            code: "state-directory-unusable", libvirtCode: 38,
            message: "cannot use the state directory '\(path)': \(detail)", httpStatus: 500)
    }

    static func cannotWrite(_ path: String, _ detail: String) -> ControlError {
        ControlError(
            code: "state-not-written", libvirtCode: 38,
            message: "cannot write the state file '\(path)': \(detail)", httpStatus: 500)
    }
}
