import ArgumentParser
import Configuration
import Control
import Foundation
import Logging

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serve domains' disks and their backups until stopped.",
        discussion: """
            Every option can also be set with an environment variable (NBDPULL_RUN_DIR for \
            --run-dir) or in the file given with --config. The command line overrides the \
            environment, and the environment overrides the file. Unknown names are refused in both.

            A new version takes the place of the server that runs when it is started with --takeover, or \
            when that one is sent SIGUSR2: jobs go on, and clients that reconnect lose nothing. SIGUSR1 \
            ends the server for the next one to go on; SIGTERM ends its jobs.
            """)
    @Option(help: "YAML or JSON file with settings named like these options.")
    var config: String?
    @Option(help: "State directory. (root: /var/lib/nbdpull, else below XDG_STATE_HOME)")
    var stateDir: String?
    @Option(help: "Directory for sockets. (root: /run/nbdpull, else below XDG_RUNTIME_DIR)")
    var runDir: String?
    @Option(help: "ADDR:PORT for serving live exports over TCP too.") var liveTcp: String?
    @Option(help: "Directory for vhost-user-blk sockets of disks, DOMAIN-TARGET.sock.")
    var vhostDir: String?
    @Option(help: "Memory that machines share over vhost-user, all together. (default: 64T)")
    var vhostMemory: String?
    @Option(help: "Define this domain (XML file) at the start; may be repeated.")
    var domain: [String] = []
    @Option(help: "TARGET=PATH[,format=FORMAT][,readonly]: a disk without XML; may be repeated.")
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
    @Option(help: "Seconds a disk's requests wait for an upstream that has gone. (default: 60)")
    var upstreamPatience: Int?
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
    @OptionGroup var monitor: MonitorOptions
    @Flag(help: "Take the place of the server that runs; without one, start as ever.")
    var takeover = false
    @Flag(name: [.customShort("q"), .long], help: "Print errors only.") var quiet = false
    @Option(help: "Minimum log level: debug, info, warning, error. (default: info)")
    var logLevel: String?

    func run() async throws {
        if lendPages { throw SettingNames.gone("--lend-pages", setting: "lend-pages") }
        let environment = ProcessInfo.processInfo.environment
        let settings = try await ServeSettings.resolve(
            given: given, file: config ?? environment["NBDPULL_CONFIG"], environment: environment)
        SystemCalls.makeNewFilesPrivate()
        try await ServeRun(settings: settings, environment: environment, takesOver: takeover).run()
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
        set("vhost-dir", vhostDir)
        set("vhost-memory", vhostMemory)
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
        set("upstream-patience", upstreamPatience)
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
        set("metrics", monitor.metrics)
        set("event-exec", monitor.eventExec)
        set("idle-after", monitor.idleAfter)
        if !monitor.metricsHost.isEmpty {
            values["metrics-host"] = .stringArray(monitor.metricsHost)
        }
        if libvirt.noLibvirt { values["no-libvirt"] = .bool(true) }
        set("log-level", logLevel)
        if quiet { values["quiet"] = .bool(true) }
        if allowPlaintext { values["allow-plaintext"] = .bool(true) }
        return values
    }
}
