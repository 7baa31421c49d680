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
            Every option can also be set by an environment variable (--run-dir is \
            NBDPULL_RUN_DIR) or in the file that --config names; the command line wins over the \
            environment, the environment over the file. A name that means nothing is refused in \
            both.
            """)
    @Option(help: "YAML or JSON file with settings, by the names of these options.")
    var config: String?
    @Option(help: "Where domains are kept. (root: /var/lib/nbdpull, else below XDG_STATE_HOME)")
    var stateDir: String?
    @Option(help: "Where the sockets are. (root: /run/nbdpull, else below XDG_RUNTIME_DIR)")
    var runDir: String?
    @Option(help: "ADDR:PORT; the live exports over TCP as well.") var liveTcp: String?
    @Option(help: "Define this domain (XML file) at the start; may be repeated.")
    var domain: [String] = []
    @Option(help: "TARGET=PATH[,format=raw][,readonly]: a disk without XML; may be repeated.")
    var disk: [String] = []
    @Option(help: "Name of the domain that --disk makes. (default: default)") var name: String?
    @Option(help: "Threads for machines, and as many for backups. (default: cores, at most 4)")
    var rings: Int?
    @OptionGroup var connections: ConnectionOptions
    @Option(help: "Of these, to the exports of one job. (default: three quarters)")
    var maxConnectionsPerJob: Int?
    @Option(help: "Seconds until a backup client that stops in mid-sentence goes; 0: never. (600)")
    var stallTimeout: Int?
    @Option(help: "Seconds until a backup client that asks nothing goes; 0: never. (0)")
    var idleTimeout: Int?
    @Option(help: "Seconds a call waits for a path or host that does not answer. (default: 30)")
    var storageTimeout: Int?
    @Option(help: "Seconds a guest write may wait for copying until the job breaks. (default: 30)")
    var copyTimeout: Int?
    @Option(help: "Memory for old content on its way to scratch. (default: 256M)")
    var copyMemory: String?
    @Option(help: "Where scratch goes that a request does not place. (default: beside the disk)")
    var scratchDir: String?
    @Option(
        help: "Size or share that scratch leaves free where disks lie, too. (5%, at most 4G)")
    var scratchReserve: String?
    @Option(help: "Seconds a guest write may wait for change tracking until it is given up. (30)")
    var trackingTimeout: Int?
    // Gone; told apart from a misspelt option, as scripts and units may still name it.
    @Flag(help: .hidden) var lendPages = false
    @Option(help: "Bytes per bit of dirty bitmaps, for domains that do not say. (default: 65536)")
    var granularity: Int?
    @Flag(
        help: "Allow plaintext TCP on other than loopback addresses, and where TLS is configured.")
    var allowPlaintext = false
    @OptionGroup var tls: TLSOptions
    @OptionGroup var libvirt: LibvirtOptions
    @Flag(name: [.customShort("q"), .long], help: "No warnings, only errors.") var quiet = false
    @Option(help: "Least severe log lines: debug, info, warning, error. (default: info)")
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
        // Everything that can be refused is looked at before anything is opened.
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
            holdLimitMilliseconds: UInt64(settings.copyTimeoutSeconds) * 1000,
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
        var warnings = await manager.restore(start)
        await manager.keepOpening()
        warnings += await freezer?.recover() ?? GuestFreezer.leftovers(state)
        for warning in warnings where !settings.quiet {
            Console.error("warning: \(warning)")
        }
        // Said even to who asked for quiet: the server is not what it seems.
        for problem in await manager.problems { Console.error("error: \(problem)") }
        do throws(ControlError) {
            try await listen(engine, liveTCP, passed)
        } catch {
            await manager.shutdown()
            throw error
        }
        try await serve(manager, engine, freezer)
    }

    private func listen(
        _ engine: any BackupEngine, _ liveTCP: ListenEndpoint?, _ passed: [Int32]
    ) async throws(ControlError) {
        do throws(ServerFault) {
            // The socket's permissions let nobody in but the server's own user.
            _ = try await engine.listenLive(
                liveSocket, security: settings.security.offersTLS ? .selective : .plaintext)
            if let liveTCP {
                _ = try await engine.listenLive(liveTCP, security: liveTCPSecurity)
            }
        } catch {
            throw controlError(from: error)
        }
        for descriptor in passed {
            try await PassedSocket.adopt(
                descriptor, engine, liveTCPSecurity, settings.allowPlaintext)
        }
    }

    private func serve(
        _ manager: JobManager, _ engine: any BackupEngine, _ freezer: GuestFreezer?
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
                    upstream: settings.libvirtUpstream))
        }
        services.append(ReloadService(engine: engine))
        services.append(
            StopService {
                ServiceNotice.send("STOPPING=1", environment)
                await manager.shutdown()
                await freezer?.shutdown()
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

/// A socket that the service manager has opened.
enum PassedSocket {
    /// Serves live exports on it if it may carry what would be said there.
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
    var begin: @Sendable () -> Void = {}
    let stop: @Sendable () async -> Void

    func run() async throws {
        begin()
        // Cancelled means that another service failed; there is as much to clean up then.
        try? await gracefulShutdown()
        await stop()
    }
}
