import ArgumentParser
import Control
import Foundation
import ServerInterface

/// The options of `backup-begin` that stand for a request's XML.
struct BackupRequestOptions: ParsableArguments {
    @Option(
        help: "Back up what changed since this checkpoint; auto: the newest usable one.",
        completion: LiveNames.bases)
    var incremental: String?
    @Option(help: "Create this checkpoint at the backup's instant; auto: a name from the time.")
    var checkpoint: String?
    @Option(
        help: "Serve the exports on this unix socket. (default: one in the run directory)",
        completion: .file())
    var unix: String?
    @Option(help: "Serve the exports on ADDR:PORT; port 0 picks a free one.") var tcp: String?
    @Flag(help: "Clients of the exports must use TLS.") var tls = false
    @Option(
        help: "Back up this disk; may be repeated. (default: all that are not read-only)",
        completion: LiveNames.disks)
    var disk: [String] = []
    @Option(
        help: "Directory for this job's scratch. (default: the server's choice)",
        completion: .directory)
    var scratchDir: String?
    @Flag(help: "The server writes the backup to files itself, instead of serving it.")
    var push = false
    @Option(
        help: "With --push: directory for the targets. (default: beside each disk)",
        completion: .directory)
    var targetDir: String?
    @Option(
        help: "With --push: format of the targets, qcow2 or raw. (default: qcow2)",
        completion: .list(["qcow2", "raw"]))
    var targetFormat: String?
    @Flag(name: .customLong("print-xml"), help: "Print the request's XML instead.")
    var printXML = false

    /// The first option that is given, by its name.
    var given: String? {
        let all: [(String, Bool)] = [
            ("--incremental", incremental != nil), ("--checkpoint", checkpoint != nil),
            ("--unix", unix != nil), ("--tcp", tcp != nil), ("--tls", tls),
            ("--disk", !disk.isEmpty), ("--scratch-dir", scratchDir != nil),
            ("--push", push), ("--target-dir", targetDir != nil),
            ("--target-format", targetFormat != nil), ("--print-xml", printXML),
        ]
        return all.first { $0.1 }?.0
    }

    func validate() throws {
        guard unix == nil || tcp == nil else {
            throw ValidationError("--unix and --tcp exclude each other")
        }
        guard push || (targetDir == nil && targetFormat == nil) else {
            throw ValidationError("--target-dir and --target-format need --push")
        }
        guard targetFormat.map({ PushFormat(rawValue: $0) != nil }) ?? true else {
            throw ValidationError("--target-format must be qcow2 or raw")
        }
        guard !push || (unix == nil && tcp == nil && !tls && scratchDir == nil) else {
            throw ValidationError("--push excludes --unix, --tcp, --tls and --scratch-dir")
        }
    }

    /// Refuses what contradicts a request that is given as XML.
    func checkBeside(
        xml: String?, checkpointXML: String?, reuseExternal: Bool
    ) throws(ValidationError) {
        if let xml, let given {
            throw ValidationError(
                "\(given) and the request '\(xml)' exclude each other: say it in the XML")
        }
        guard checkpoint == nil || checkpointXML == nil else {
            throw ValidationError("--checkpoint and --checkpointxml exclude each other")
        }
        guard !push || !reuseExternal else {
            throw ValidationError(
                "--push makes new files; --reuse-external needs a request that names existing ones")
        }
        guard scratchDir == nil || !reuseExternal else {
            throw ValidationError(
                "--scratch-dir makes new files; --reuse-external needs a request that names "
                    + "existing ones")
        }
    }

    /// The request that the options stand for, with what the server knows filled in.
    func request(
        domain: String, _ client: ControlClient
    ) async throws(ControlError) -> BackupOptions.Request {
        for (option, value) in [("--scratch-dir", scratchDir), ("--unix", unix)] where value == "" {
            throw .invalidArgument(what: "\(option) ''", detail: "the path is missing")
        }
        var wanted = BackupOptions()
        wanted.incremental = incremental
        wanted.checkpoint = checkpoint
        wanted.requiresTLS = tls
        wanted.disks = disk
        wanted.scratchDirectory = scratchDir.map(ServeArguments.absolutePath)
        wanted.isPush = push
        wanted.targetDirectory = targetDir.map(ServeArguments.absolutePath)
        wanted.targetFormat = targetFormat.flatMap { PushFormat(rawValue: $0) }
        if let unix {
            wanted.endpoint = .unix(path: ServeArguments.absolutePath(unix), mode: 0o600)
        }
        if let tcp { wanted.endpoint = try ServeArguments.tcpEndpoint(tcp, option: "--tcp") }
        let socket = ServeArguments.absolutePath(client.socketPath)
        let facts = BackupOptions.Facts(
            domain: try await client.send(
                ControlClient.Call("GET", "v1", "domains", domain), as: DomainView.self),
            disks: try await client.send(
                ControlClient.Call("GET", "v1", "domains", domain, "disks"), as: DisksBody.self
            ).disks,
            checkpoints: try await client.send(
                ControlClient.Call("GET", "v1", "domains", domain, "checkpoints"),
                as: CheckpointsBody.self
            ).checkpoints,
            socketDirectory: URL(fileURLWithPath: socket).deletingLastPathComponent()
                .resolvingSymlinksInPath().path,
            now: Date(), tag: String(UUID().uuidString.lowercased().prefix(8)))
        return try wanted.request(facts)
    }
}
