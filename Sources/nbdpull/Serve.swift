import ArgumentParser
import Configuration
import Control
import Foundation
import Logging
import NBDServer
import ServerInterface
import ServiceLifecycle
import UnixSignals

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serve domains' disks and their backups until stopped.",
        discussion: """
            Every option can also be set with an environment variable (NBDPULL_RUN_DIR for \
            --run-dir) or in the file given with --config. The command line overrides the \
            environment, and the environment overrides the file. Unknown names are refused in both.
            """)
    @Option(help: "YAML or JSON file with settings named like these options.")
    var config: String?
    @Option(help: "State directory. (root: /var/lib/nbdpull, else below XDG_STATE_HOME)")
    var stateDir: String?
    @Option(help: "Directory for sockets. (root: /run/nbdpull, else below XDG_RUNTIME_DIR)")
    var runDir: String?
    @Option(help: "ADDR:PORT for serving live exports over TCP too.") var liveTcp: String?
    @Option(help: "Define this domain (XML file) at the start; may be repeated.")
    var domain: [String] = []
    @Option(help: "TARGET=PATH[,format=raw][,readonly]: a disk without XML; may be repeated.")
    var disk: [String] = []
    @Option(help: "Name of the domain made by --disk. (default: default)") var name: String?
    @Option(help: "Threads for machines; backups get as many. (default: cores, at most 4)")
    var rings: Int?
    @OptionGroup var connections: ConnectionOptions
    @Option(help: "Maximum to one job's exports. (default: 3/4 of --max-connections)")
    var maxConnectionsPerJob: Int?
    @Option(help: "Seconds a backup client may stall mid-message; 0: forever. (default: 600)")
    var stallTimeout: Int?
    @Option(help: "Seconds a backup client may be idle; 0: forever. (default: 0)")
    var idleTimeout: Int?
    @Option(help: "Seconds to wait for a path or host that does not answer. (default: 30)")
    var storageTimeout: Int?
    @Option(help: "Seconds a guest write waits for a copy before the job breaks. (default: 30)")
    var copyTimeout: Int?
    @Option(help: "Memory for copies to scratch. (default: 256M)")
    var copyMemory: String?
    @Option(help: "Directory for scratch that a request does not name. (default: the disk's)")
    var scratchDir: String?
    @Option(
        help: "Size or share to leave free on file systems with disks. (5%, at most 4G)")
    var scratchReserve: String?
    @Option(help: "Seconds a guest write waits for change tracking before tracking is lost. (30)")
    var trackingTimeout: Int?
    // Gone; told apart from a misspelt option, as scripts and units may still name it.
    @Flag(help: .hidden) var lendPages = false
    @Option(help: "Bytes per dirty bit, unless a domain says otherwise. (default: 65536)")
    var granularity: Int?
    @Flag(
        help: "Allow plaintext TCP beyond loopback, and alongside TLS.")
    var allowPlaintext = false
    @OptionGroup var tls: TLSOptions
    @OptionGroup var libvirt: LibvirtOptions
    @Flag(name: [.customShort("q"), .long], help: "Print errors only.") var quiet = false
    @Option(help: "Minimum log level: debug, info, warning, error. (default: info)")
    var logLevel: String?

    func run() async throws {
        if lendPages { throw SettingNames.gone("--lend-pages", setting: "lend-pages") }
        let environment = ProcessInfo.processInfo.environment
        let settings = try await ServeSettings.resolve(
            given: given, file: config ?? environment["NBDPULL_CONFIG"], environment: environment)
        SystemCalls.makeNewFilesPrivate()
        try await ServeRun(settings: settings, environment: environment).run()
    }

    // Only what was given: the rest is left to the environment, the file and the defaults.
    private var given: [String: ConfigContent] {
        var values: [String: ConfigContent] = [:]
        func set(_ key: String, _ value: String?) {
            if let value { values[key] = .string(value) }
        }
        func set(_ key: String, _ value: Int?) {
            if let value { values[key] = .int(value) }
        }
        set("state-dir", stateDir)
        set("run-dir", runDir)
        set("live-tcp", liveTcp)
        set("name", name)
        set("tls-certs", tls.tlsCerts)
        set("tls-psk", tls.tlsPsk)
        set("tls-verify-peer", tls.tlsVerifyPeer)
        set("tls-authz", tls.tlsAuthz)
        set("rings", rings)
        set("max-connections", connections.maxConnections)
        set("max-connections-per-job", maxConnectionsPerJob)
        set("max-connections-per-peer", connections.maxConnectionsPerPeer)
        set("stall-timeout", stallTimeout)
        set("idle-timeout", idleTimeout)
        set("socket-mode", connections.socketMode)
        set("socket-group", connections.socketGroup)
        set("copy-timeout", copyTimeout)
        set("storage-timeout", storageTimeout)
        set("tracking-timeout", trackingTimeout)
        set("granularity", granularity)
        set("copy-memory", copyMemory)
        set("scratch-dir", scratchDir)
        set("scratch-reserve", scratchReserve)
        if !domain.isEmpty { values["domain"] = .stringArray(domain) }
        if !disk.isEmpty { values["disk"] = .stringArray(disk) }
        set("libvirt-socket-mode", libvirt.libvirtSocketMode)
        set("libvirt-socket-group", libvirt.libvirtSocketGroup)
        set("libvirt-upstream", libvirt.libvirtUpstream)
        set("libvirt-upstream-uri", libvirt.libvirtUpstreamUri)
        if libvirt.noLibvirt { values["no-libvirt"] = .bool(true) }
        set("log-level", logLevel)
        if quiet { values["quiet"] = .bool(true) }
        if allowPlaintext { values["allow-plaintext"] = .bool(true) }
        return values
    }
}

/// One run of the server, from the lock to the last flush.
struct ServeRun {
    let settings: ServeSettings
    let environment: [String: String]

    private var controlSocket: String { settings.runDirectory + "/control.sock" }
    private var libvirtSocket: String { settings.runDirectory + "/libvirt-sock" }
    private var liveSocket: ListenEndpoint {
        .unix(path: settings.runDirectory + "/live.sock", mode: 0o600)
    }

    func run() async throws {
        // Everything that can be refused is checked before anything is opened.
        let start = try startDomains()
        let liveTCP = try await liveTCPEndpoint()
        let passed = try SocketActivation.descriptors(
            environment, processID: ProcessInfo.processInfo.processIdentifier)
        let state = try StateDirectory(path: settings.stateDirectory)
        try makeRunDirectory()
        try ControlServer.clearStaleSocket(controlSocket)
        if settings.libvirtAccess != nil { try ControlServer.clearStaleSocket(libvirtSocket) }
        let engine = try EngineFactory.make(settings.server)
        let log = EventLogger(level: settings.logLevel)
        do {
            try await run(start, liveTCP, passed, state, engine, log)
        } catch {
            log.flush(orLeaveWith: 1)
            throw error
        }
        log.flush(orLeaveWith: 0)
    }

    private func run(
        _ start: [StartDomain], _ liveTCP: ListenEndpoint?, _ passed: [Int32],
        _ state: StateDirectory, _ engine: any BackupEngine, _ log: EventLogger
    ) async throws {
        defer { state.release() }
        var managing = JobManagerSettings(
            runDirectory: settings.runDirectory, liveEndpoint: liveSocket,
            allowPlaintext: settings.allowPlaintext,
            offersTLS: settings.security.offersTLS,
            copyTimeoutMilliseconds: UInt64(settings.copyTimeoutSeconds) * 1000,
            granularityBytes: settings.granularityBytes,
            scratchDirectory: settings.scratchDirectory)
        managing.storageMilliseconds = Int32(settings.server.storageSeconds * 1000)
        let events = EventLog { log.write($0) }
        let freezer = settings.libvirtUpstream.map {
            GuestFreezer(upstream: $0, state: state, events: events)
        }
        managing.freezer = freezer
        let manager = JobManager(engine: engine, state: state, settings: managing, events: events)
        await manager.activate()
        let listening = Listening()
        var warnings = await manager.restore(start) {
            await listening.begin { () throws(ControlError) in
                try await listen(engine, liveTCP, passed)
            }
        }
        await manager.keepOpening()
        warnings += await freezer?.recover() ?? GuestFreezer.leftovers(state)
        for warning in warnings where !settings.quiet {
            Console.error("warning: \(warning)")
        }
        // Printed even with --quiet: the server is not what it seems.
        for problem in await manager.problems { Console.error("error: \(problem)") }
        let live: [ListenEndpoint]
        do throws(ControlError) {
            live = try await listening.endpoints()
        } catch {
            await manager.shutdown()
            throw error
        }
        try await serve(manager, engine, freezer, live)
    }

    /// Returns where the live exports are reached.
    private func listen(
        _ engine: any BackupEngine, _ liveTCP: ListenEndpoint?, _ passed: [Int32]
    ) async throws(ControlError) -> [ListenEndpoint] {
        var bound = [liveSocket]
        do throws(ServerFault) {
            // The socket's permissions admit only the server's own user.
            _ = try await engine.listenLive(
                liveSocket, security: settings.security.offersTLS ? .selective : .plaintext)
            if let liveTCP {
                bound.append(
                    try await engine.listenLive(liveTCP, security: liveTCPSecurity))
            }
        } catch {
            throw controlError(from: error)
        }
        for descriptor in passed {
            bound.append(
                try await PassedSocket.adopt(
                    descriptor, engine, liveTCPSecurity, settings.allowPlaintext))
        }
        return bound
    }

    private func serve(
        _ manager: JobManager, _ engine: any BackupEngine, _ freezer: GuestFreezer?,
        _ live: [ListenEndpoint]
    ) async throws {
        var logger = Logger(label: "nbdpull") { StreamLogHandler.standardError(label: $0) }
        logger.logLevel = settings.quiet ? .error : .warning
        let socket = controlSocket
        let environment = environment
        let front = ControlServer(
            routes: Routes(manager: manager, version: Nbdpull.version), socketPath: socket,
            logger: logger
        ) {
            Console.error("nbdpull: ready, control socket \(socket)")
            let problems = await manager.problems
            let status = problems.isEmpty ? "" : "\nSTATUS=degraded: \(problems[0])"
            ServiceNotice.send("READY=1" + status, environment)
        }
        var services: [any Service] = [front]
        if let access = settings.libvirtAccess {
            services.append(
                LibvirtServer(
                    manager: manager, socketPath: libvirtSocket, access: access,
                    upstream: settings.libvirtUpstream, places: LivePlaces(live)))
        }
        services.append(ReloadService(engine: engine))
        services.append(
            StopService {
                ServiceNotice.send("STOPPING=1", environment)
                // Guests keep running while jobs end.
                async let thawed: Void? = freezer?.shutdown()
                await manager.shutdown()
                await thawed
            })
        // The last service is stopped first: jobs end while the sockets still answer.
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: services.map { .init(service: $0) },
                gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
        try await group.run()
    }

    private func startDomains() throws(ControlError) -> [StartDomain] {
        var start: [StartDomain] = []
        for file in settings.domains {
            let definition = try DomainDefinition.parse(
                try InputFile.text(file), hasStableUUID: true)
            start.append(StartDomain(definition: definition, isStored: true))
        }
        if !settings.disks.isEmpty {
            var disks: [DomainDisk] = []
            for text in settings.disks { disks.append(try ServeArguments.disk(text)) }
            let definition = DomainDefinition(name: settings.name, disks: disks)
            try definition.validate()
            start.append(StartDomain(definition: definition, isStored: false))
        }
        let names = start.map(\.definition.name)
        for (index, name) in names.enumerated() where names[..<index].contains(name) {
            throw .domainExists(name)
        }
        return start
    }

    private func liveTCPEndpoint() async throws(ControlError) -> ListenEndpoint? {
        guard let text = settings.liveTCP else { return nil }
        let endpoint = try ServeArguments.tcpEndpoint(text, option: "--live-tcp")
        do throws(ControlError) {
            try PlaintextPolicy.check(
                endpoint, security: liveTCPSecurity, allowPlaintext: settings.allowPlaintext)
        } catch {
            throw await HostNames.explained(error, endpoint)
        }
        return endpoint
    }

    private var liveTCPSecurity: ListenerSecurity {
        SecurityArguments.listener(settings.security, allowPlaintext: settings.allowPlaintext)
    }

    private func makeRunDirectory() throws(ControlError) {
        do {
            try FileManager.default.createDirectory(
                atPath: settings.runDirectory, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
        } catch {
            throw ControlError(
                .systemError, code: "run-directory-unusable", status: 500,
                detail: "cannot create the run directory '\(settings.runDirectory)': "
                    + error.localizedDescription)
        }
        guard let group = settings.server.socketAccess.group ?? settings.libvirtAccess?.group else {
            return
        }
        do throws(SystemCalls.Failure) {
            try SystemCalls.letThrough(group: group, path: settings.runDirectory)
        } catch {
            throw ControlError(
                .systemError, code: "run-directory-unusable", status: 500,
                detail: "cannot give the run directory '\(settings.runDirectory)' to group"
                    + " \(group): \(error.text)")
        }
    }
}

/// Listening for machines, which begins while the start goes on.
private actor Listening {
    private var result = Result<[ListenEndpoint], ControlError>.success([])

    func begin(
        _ body: @Sendable () async throws(ControlError) -> [ListenEndpoint]
    ) async {
        do throws(ControlError) {
            result = .success(try await body())
        } catch {
            result = .failure(error)
        }
    }

    /// Where the live exports are reached.
    func endpoints() throws(ControlError) -> [ListenEndpoint] { try result.get() }
}

/// A socket that the service manager has opened.
enum PassedSocket {
    /// Serves live exports on it, if what it would carry is allowed there.
    @discardableResult
    static func adopt(
        _ descriptor: Int32, _ engine: any BackupEngine, _ security: ListenerSecurity,
        _ allowPlaintext: Bool
    ) async throws(ControlError) -> ListenEndpoint {
        let bound: ListenEndpoint
        do throws(ServerFault) {
            bound = try ListenEndpoint.bound(to: descriptor)
        } catch {
            throw controlError(from: error)
        }
        try PlaintextPolicy.check(bound, security: security, allowPlaintext: allowPlaintext)
        do throws(ServerFault) {
            return try await engine.adoptLive(descriptor: descriptor, security: security)
        } catch {
            throw controlError(from: error)
        }
    }
}

/// Waits for the stop signal, then does what stopping takes.
struct StopService: Service {
    /// Done first: from then on a stop signal is waited for.
    var begin: @Sendable () async throws -> Void = {}
    let stop: @Sendable () async -> Void

    func run() async throws {
        try await begin()
        // Cancelled means that another service failed; there is as much to clean up then.
        try? await gracefulShutdown()
        await stop()
    }
}
