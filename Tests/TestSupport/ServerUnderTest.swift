import Foundation
import Glibc

/// What `backup-begin --json` prints.
package struct BegunJob: Decodable, Sendable {
    package struct Export: Decodable, Sendable {
        package let disk: String
        package let name: String
        package let uri: String
        package let bitmap: String?
    }

    package let id: String
    package let exports: [Export]

    /// Decodes what `backup-begin --json` printed.
    package init(json text: String) throws {
        self = try JSONDecoder().decode(BegunJob.self, from: Data(text.utf8))
    }

    package func export(_ disk: String) throws -> Export {
        guard let found = exports.first(where: { $0.disk == disk }) else {
            throw TestFailure("job \(id) has no export of \(disk)")
        }
        return found
    }

    package func uri(_ disk: String) throws -> String { try export(disk).uri }
}

/// The built `nbdpull`, running `serve` over directories of its own.
package final class ServerUnderTest {
    package let directory: TemporaryDirectory
    package let stateDirectory: String
    package let runDirectory: String
    package let options: [String]
    /// What the server's environment has besides the tests' own.
    package let environment: [String: String]
    /// A program that starts the server, with its arguments, from the next start on.
    package var launcher: [String] = []
    private var process: Command?

    package var controlSocket: String { runDirectory + "/control.sock" }
    package var liveSocket: String { runDirectory + "/live.sock" }
    package var stderr: String { process?.stderr ?? "" }
    package var isRunning: Bool { process?.isRunning ?? false }
    package var processID: Int32 { process?.processID ?? 0 }

    /// Memory of its own that the server holds right now, in bytes.
    package var memoryBytes: Int {
        for line in Files.read("/proc/\(processID)/status").split(separator: "\n")
        where line.hasPrefix("RssAnon:") {
            return line.split(separator: " ").dropFirst().first.flatMap { Int($0) }.map { $0 << 10 }
                ?? 0
        }
        return 0
    }

    /// Descriptors that the server has open.
    package var descriptorCount: Int { Files.listing("/proc/\(processID)/fd").count }

    /// Processor time that the server has used, in seconds.
    package var processorSeconds: Double {
        let text = Files.read("/proc/\(processID)/stat")
        let fields = text.drop { $0 != ")" }.split(separator: " ")
        guard fields.count > 12, let user = Double(fields[12]), let system = Double(fields[13])
        else { return 0 }
        return (user + system) / 100
    }

    /// The server's threads.
    package var threads: [ServerThread] {
        let tasks = "/proc/\(processID)/task"
        return ((try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []).map {
            ServerThread("\(tasks)/\($0)")
        }
    }

    /// Starts a server that knows these domains, and waits until it is ready.
    package init(
        _ domains: [DomainDescription] = [], options: [String] = [],
        in given: TemporaryDirectory? = nil, environment: [String: String] = [:]
    ) throws {
        directory = try given ?? TemporaryDirectory()
        self.environment = environment
        stateDirectory = directory.file("state")
        runDirectory = directory.file("run")
        self.options = options
        var definitions: [String] = []
        for domain in domains {
            let file = directory.file(domain.name + ".xml")
            try Files.write(domain.xml, to: file)
            definitions += ["--domain", file]
        }
        try start(definitions)
    }

    /// Starts the server again, with what its state directory knows.
    package func start(_ extra: [String] = []) throws {
        try launch(extra)
        try awaitReady()
    }

    /// Starts the server again, and waits for nothing.
    package func launch(_ extra: [String] = []) throws {
        let words =
            launcher + [
                try Self.binary(), "serve", "--state-dir", stateDirectory, "--run-dir",
                runDirectory,
            ] + options + extra
        let command = try Command(
            words[0], Array(words.dropFirst()), environment: environment)
        process = command
    }

    /// Waits until a server that was launched is ready.
    package func awaitReady() throws {
        try process?.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
    }

    /// Stops the server and fails unless it was alive and goes in peace.
    package func stop() throws {
        guard let process else { throw TestFailure("the server was not started") }
        guard process.isRunning else { throw TestFailure("died: \(try process.result())") }
        process.terminate()
        let result = try process.result(timeout: 30)
        guard result.succeeded, !Self.looksLikeCrash(result.stderr) else {
            throw TestFailure("did not stop cleanly: \(result)")
        }
        self.process = nil
    }

    /// Asks the server to read its credentials again, and waits for its answer.
    package func reload() throws -> String {
        guard let process else { throw TestFailure("the server was not started") }
        let before = process.stderr.count
        process.signal(SIGHUP)
        try process.wait(for: "answer to SIGHUP") {
            $0.stderr.dropFirst(before).contains("reloaded")
        }
        return String(process.stderr.dropFirst(before))
    }

    /// Starts another process that is to take the server's place; the server stays this object's.
    package func startNewcomer(
        _ extra: [String] = [], state: String? = nil, run: String? = nil,
        environment other: [String: String]? = nil
    ) throws -> Command {
        try Command(
            try Self.binary(),
            [
                "serve", "--takeover", "--state-dir", state ?? stateDirectory, "--run-dir",
                run ?? runDirectory,
            ] + options + extra, environment: other ?? environment)
    }

    /// Has another process take the server's place, and waits until it serves and the old one is
    /// gone.
    ///
    /// `whenServing` is told of the old process and the new one, as soon as that serves.
    package func takeOver(
        _ extra: [String] = [],
        whenServing: (_ old: Int32, _ new: Int32) throws -> Void = { _, _ in }
    ) throws {
        guard let old = process else { throw TestFailure("the server was not started") }
        let newcomer = try startNewcomer(extra)
        try newcomer.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
        try whenServing(old.processID, newcomer.processID)
        let result = try old.result(timeout: 10)
        guard result.succeeded, !Self.looksLikeCrash(result.stderr) else {
            throw TestFailure("did not make way cleanly: \(result)")
        }
        process = newcomer
    }

    /// Sends the server a signal.
    package func signal(_ number: Int32) { process?.signal(number) }

    /// Ends the server as a power switch does.
    package func kill() {
        process?.kill()
        process = nil
    }

    /// Fails if the server is gone or has printed a crash.
    package func requireHealthy() throws {
        guard let process, process.isRunning, !Self.looksLikeCrash(process.stderr) else {
            throw TestFailure("the server is not healthy: \(stderr)")
        }
    }

    private static func looksLikeCrash(_ text: String) -> Bool {
        text.contains("Fatal error") || text.contains("💣") || text.contains("*** Signal")
    }

    /// `NBDPULL_BINARY`, else the newest of the release and the debug build below the package.
    package static func binary() throws -> String {
        if let path = ProcessInfo.processInfo.environment["NBDPULL_BINARY"] { return path }
        for configuration in ["release", "debug"] {
            let path =
                FileManager.default.currentDirectoryPath + "/.build/\(configuration)/nbdpull"
            if Files.exists(path) { return path }
        }
        throw TestFailure("no nbdpull: run `swift build -c release`, or set NBDPULL_BINARY")
    }
}

// The command line as a client of this server.
extension ServerUnderTest {
    /// Runs a client command to its end.
    package func cli(_ arguments: [String], input: String = "") throws -> CommandResult {
        try startCLI(arguments, input: input).result(timeout: 60)
    }

    /// Starts a client command and leaves it running.
    package func startCLI(_ arguments: [String], input: String = "") throws -> Command {
        try Command(
            try Self.binary(), arguments, environment: ["NBDPULL_SOCKET": controlSocket],
            input: input)
    }

    /// Runs a client command that must succeed and decodes what it prints.
    package func json<Value: Decodable>(_ arguments: [String], as type: Value.Type) throws -> Value
    {
        let text = try cli(arguments + ["--json"]).output()
        return try JSONDecoder().decode(type, from: Data(text.utf8))
    }

    /// The URI of a live export on the unix socket.
    package func liveURI(_ domain: String, _ disk: String) -> String {
        "nbd+unix:///\(domain)/\(disk)?socket=\(liveSocket)"
    }

    /// The arguments that begin a job, with their XML written to files.
    package func beginArguments(
        _ domain: String, _ backup: BackupDescription, checkpoint: String? = nil
    ) throws -> [String] {
        let stem = directory.file("begin-" + UUID().uuidString)
        try Files.write(backup.xml, to: stem + ".xml")
        var arguments = ["backup-begin", domain, stem + ".xml"]
        if let checkpoint {
            try Files.write(checkpointXML(checkpoint), to: stem + "-checkpoint.xml")
            arguments += ["--checkpointxml", stem + "-checkpoint.xml"]
        }
        return arguments
    }

    /// Begins a job that must begin.
    package func begin(
        _ domain: String, _ backup: BackupDescription, checkpoint: String? = nil
    ) throws -> BegunJob {
        try json(
            try beginArguments(domain, backup, checkpoint: checkpoint), as: BegunJob.self)
    }

    /// Begins a job on unix with scratch files, all in this server's directory.
    package func begin(
        _ domain: String, disks: [String], tag: String, checkpoint: String? = nil,
        incremental: String? = nil
    ) throws -> BegunJob {
        var backup = standardBackup(disks: disks, tag: tag)
        backup.incremental = incremental
        return try begin(domain, backup, checkpoint: checkpoint)
    }

    /// A backup on a unix socket with scratch files, all in this server's directory.
    package func standardBackup(disks: [String], tag: String) -> BackupDescription {
        BackupDescription(
            .unix(directory.file("job-\(tag).sock")),
            disks.map {
                BackupDiskDescription($0, scratch: directory.file("scratch-\(tag)-\($0)"))
            })
    }

    /// Ends a job.
    package func end(_ domain: String, _ job: BegunJob) throws {
        try cli(["backup-end", domain, "--job", job.id]).output()
    }
}
