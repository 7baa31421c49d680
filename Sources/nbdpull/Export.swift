import AdapterKeeper
import ArgumentParser
import Control
import Foundation
import Handover
import Logging
import ServerInterface
import ServiceLifecycle
import UnixSignals

struct Export: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serve one file, device or NBD export until killed, without any state.")
    @Option(help: "Unix socket to listen on. (default: one in the run or temporary directory)")
    var socket: String?
    @Option(help: "ADDR:PORT to listen on instead; port 0 picks a free one.")
    var tcp: String?
    @Option(
        help: "Unix socket for a machine's vhost-user-blk; then NBD only with --socket or --tcp.")
    var vhost: String?
    @Option(help: "Export name. (default: the empty name)") var name = ""
    @Option(
        name: [.customShort("D"), .long],
        help: "Description shown to clients; at most 4096 bytes.")
    var description: String?
    @Flag(help: "Serve it read-only.") var readOnly = false
    @Option(help: "Its format: \(ServeArguments.formats.joined(separator: ", ")). (default: raw)")
    var format: String?
    @Option(help: "none (O_DIRECT) or buffered.") var cache = "buffered"
    @Option(help: "Seconds requests wait for an upstream that has gone. (default: 60)")
    var upstreamPatience: Int?
    @Option(help: "Number of threads. (default: one per core, at most 4)") var rings: Int?
    @OptionGroup var connections: ConnectionOptions
    @Flag(help: "Print the NBD URI on standard output.") var printUri = false
    @Flag(
        help: "Allow plaintext TCP beyond loopback, and alongside TLS.")
    var allowPlaintext = false
    @OptionGroup var tls: TLSOptions
    @OptionGroup var output: OutputOptions
    @Argument(
        help: "The file, the block device, or the nbd:// or nbd+unix:// URI.", completion: .file())
    var file: String

    func validate() throws {
        guard socket == nil || tcp == nil else {
            throw ValidationError("--socket and --tcp exclude each other")
        }
        guard vhost != "", socket != "" else {
            throw ValidationError("\(vhost == "" ? "--vhost" : "--socket"): the path is empty")
        }
        guard CacheMode(rawValue: cache) != nil else {
            throw ValidationError("--cache '\(cache)' is neither none nor buffered")
        }
        if let description {
            guard description.utf8.count <= DiskConfiguration.descriptionBytesMax else {
                throw ValidationError(
                    "--description has \(description.utf8.count) bytes, at most"
                        + " \(DiskConfiguration.descriptionBytesMax) are possible")
            }
        }
        guard upstreamPatience.map({ (0...86400).contains($0) }) ?? true else {
            throw ValidationError("--upstream-patience must be between 0 and 86400")
        }
        guard rings.map({ (1...64).contains($0) }) ?? true else {
            throw ValidationError("--rings must be between 1 and 64")
        }
    }

    func run() async throws {
        let files = try tls.configuration()
        let security = SecurityArguments.listener(files, allowPlaintext: allowPlaintext)
        let environment = ProcessInfo.processInfo.environment
        let passed = try passedSocket(environment)
        let endpoint = try endpoint(isPassed: passed != nil)
        if let endpoint {
            do throws(ControlError) {
                try PlaintextPolicy.check(
                    endpoint, security: security, allowPlaintext: allowPlaintext)
            } catch {
                throw await HostNames.explained(error, endpoint)
            }
        }
        SystemCalls.makeNewFilesPrivate()
        let source = try ServeArguments.source(file, format: format)
        var server = try configuration(files)
        if source.image != nil {
            server.adapters = Adapters(
                command: AdapterKeeper.command, directory: try Self.adapterDirectory(),
                memoryDirectory: EngineFactory.memoryDirectory)
        }
        let engine = try EngineFactory.make(server)
        var disk = DiskConfiguration(
            exportName: name, path: source.path, kind: source.kind,
            readOnly: readOnly, cacheMode: CacheMode(rawValue: cache) ?? .buffered,
            discardMode: .unmap, description: description)
        disk.upstreamPatienceSeconds = upstreamPatience
        disk.image = source.image
        disk.vhostSocket = vhost.map { ServeArguments.absolutePath($0) }
        try await attach(engine, disk)
        if format == nil, source.kind != .network { warnOfFormat(source.path) }
        // Without anything to reload, a hang-up ends the export as it ends other programs.
        let hasFiles = files.offersTLS || files.rules != nil
        let reload: [ServiceGroupConfiguration.ServiceConfiguration] =
            hasFiles ? [.init(service: ReloadService(engine: engine))] : []
        try await ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: reload + [
                    .init(
                        service: StopService(
                            // No client gets in before a stop signal is heeded.
                            begin: { try await serve(engine, endpoint, security, passed) },
                            stop: { await engine.shutdown() }))
                ],
                gracefulShutdownSignals: [.sigterm, .sigint],
                logger: Logger(label: "nbdpull") { StreamLogHandler.standardError(label: $0) })
        ).run()
    }

    /// Nothing is ever opened by what it looks like.
    private func warnOfFormat(_ path: String) {
        guard let found = try? ImageMagic.look(at: path) else { return }
        Console.error(
            "nbdpull: '\(path)' looks like \(found) and is served as raw, so clients see the"
                + " image's own bytes. Unless a machine has written it there, say --format \(found);"
                + " --format raw serves it as it is, without this line")
    }

    private func attach(
        _ engine: any BackupEngine, _ disk: DiskConfiguration
    ) async throws(ControlError) {
        do throws(ServerFault) {
            _ = try await engine.attachDisk(disk)
        } catch {
            await engine.shutdown()
            throw controlError(from: error)
        }
    }

    private func serve(
        _ engine: any BackupEngine, _ endpoint: ListenEndpoint?, _ security: ListenerSecurity,
        _ passed: Int32?
    ) async throws(ControlError) {
        do throws(ControlError) {
            let bound = try await listen(engine, endpoint, security, passed)
            announce(
                bound.map { ExportURI.text(endpoint: $0.reachable, name: name, security: security) }
            )
        } catch {
            await engine.shutdown()
            throw error
        }
    }

    private func listen(
        _ engine: any BackupEngine, _ endpoint: ListenEndpoint?, _ security: ListenerSecurity,
        _ passed: Int32?
    ) async throws(ControlError) -> ListenEndpoint? {
        if let passed {
            return try await PassedSocket.adopt(passed, engine, security, allowPlaintext)
        }
        guard let endpoint else { return nil }
        do throws(ServerFault) {
            return try await engine.listenLive(endpoint, security: security)
        } catch {
            throw controlError(from: error)
        }
    }

    private func configuration(
        _ security: SecurityConfiguration
    ) throws(ControlError) -> ServerConfiguration {
        try ServerConfiguration(
            rings: rings, servesJobs: false, maxConnections: connections.maxConnections ?? 100,
            maxConnectionsPerPeer: connections.maxConnectionsPerPeer,
            socketAccess: SocketAccess(
                mode: try connections.socketMode.map(SocketPermissions.mode),
                group: try connections.socketGroup.map(SocketPermissions.group)),
            security: security
        ).checked()
    }

    /// The same for all exports of a user, so that one waits for another's program; a service that
    /// runs as another user has its own.
    private static func adapterDirectory() throws(ControlError) -> String {
        try DefaultPlaces.runDirectory(
            ProcessInfo.processInfo.environment, isRoot: SystemCalls.effectiveUser == 0)
            + "/export-adapters-\(SystemCalls.effectiveUser)"
    }

    /// The one socket that the service manager has opened, if it has.
    private func passedSocket(_ environment: [String: String]) throws(ControlError) -> Int32? {
        let passed = try SocketActivation.descriptors(
            environment, processID: ProcessInfo.processInfo.processIdentifier)
        guard passed.count <= 1, passed.isEmpty || (socket == nil && tcp == nil) else {
            throw .invalidArgument(
                what: "\(passed.count) sockets of the service manager",
                detail: "an export takes one, and none beside --socket or --tcp")
        }
        return passed.first
    }

    private func announce(_ uri: String?) {
        if let uri, output.json {
            Console.out("{\"uri\":\"\(uri)\"}\n")
        } else if let uri, printUri {
            Console.out(uri + "\n")
        }
        let places = [uri, vhost.map { "vhost-user socket \($0)" }].compactMap { $0 }
        if !output.quiet { Console.error("nbdpull: ready, \(places.joined(separator: ", "))") }
        ServiceManager(ProcessInfo.processInfo.environment).tell("READY=1")
    }

    /// Where NBD is served; nil: nowhere, or on a socket that was passed.
    private func endpoint(isPassed: Bool) throws(ControlError) -> ListenEndpoint? {
        if let tcp { return try ServeArguments.tcpEndpoint(tcp, option: "--tcp") }
        if let socket { return .unix(path: ServeArguments.absolutePath(socket), mode: 0o600) }
        if isPassed || vhost != nil { return nil }
        let runtime = ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"] ?? "/tmp"
        let number = ProcessInfo.processInfo.processIdentifier
        return .unix(path: "\(runtime)/nbdpull-export-\(number).sock", mode: 0o600)
    }
}
