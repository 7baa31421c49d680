import AdapterKeeper
import Configuration
import Control
import Foundation
import Logging
import ServerInterface

/// The settings of `serve`, from all sources: command line, then environment, then file, then
/// defaults.
struct ServeSettings {
    var stateDirectory: String
    var runDirectory: String
    var liveTCP: String?
    /// Absolute path; nil: only disks whose definition names a socket have one.
    var vhostDirectory: String?
    var domains: [String]
    var disks: [String]
    var name: String
    var server: ServerConfiguration
    var allowPlaintext: Bool
    var copyTimeoutSeconds: Int
    /// Absolute path; nil puts scratch beside the disk.
    var scratchDirectory: String?
    var granularityBytes: UInt32
    /// Who may open the socket for libvirt's clients; nil: there is no such socket.
    var libvirtAccess: SocketAccess?
    /// The libvirtd that runs the machines; nil: unknown to this server.
    var libvirtUpstream: UpstreamSettings?
    /// Where metrics are and the page; nil: nowhere.
    var monitor: MonitorSettings?
    /// Absolute path of the program that is run on events.
    var eventProgram: String?
    /// Nil: nobody is told of jobs without a client.
    var idleAfterSeconds: Int?
    var quiet: Bool
    var logLevel: Logger.Level

    var security: SecurityConfiguration { server.security }

    /// Reads every source.
    ///
    /// `given` holds the command line's values, by option name.
    ///
    /// An environment variable is `NBDPULL_` + the option's name in capitals with underscores;
    /// lists are separated by `;` there. The file uses the option names as keys. A name that means
    /// nothing is refused in both: a misspelt one would silently be without effect.
    static func resolve(
        given: [String: ConfigContent], file: String?, environment: [String: String]
    ) async throws -> ServeSettings {
        var providers: [any ConfigProvider] = [
            InMemoryProvider(
                name: "command line",
                values: Dictionary(
                    uniqueKeysWithValues: given.map {
                        (AbsoluteConfigKey([$0.key]), ConfigValue($0.value, isSecret: false))
                    })),
            EnvironmentVariablesProvider(
                environmentVariables: environment, arraySeparator: ";"
            ).prefixKeys(with: "nbdpull"),
        ]
        let names = SettingNames()
        if let file { providers.append(try await fileProvider(file, names)) }
        let source = Source(reader: ConfigReader(providers: providers), names: names)
        let settings = try ServeSettings(source, environment)
        try names.refuseUnknown(file: file, environment)
        return settings
    }

    private init(_ source: Source, _ environment: [String: String]) throws(ControlError) {
        let isRoot = SystemCalls.effectiveUser == 0
        let state: String =
            if let path = try source.string("state-dir") {
                path
            } else if let path = DefaultPlaces.ofService(environment["STATE_DIRECTORY"]) {
                path
            } else {
                try DefaultPlaces.stateDirectory(environment, isRoot: isRoot)
            }
        let run: String =
            if let path = try source.string("run-dir") {
                path
            } else if let path = DefaultPlaces.ofService(environment["RUNTIME_DIRECTORY"]) {
                path
            } else {
                try DefaultPlaces.runDirectory(environment, isRoot: isRoot)
            }
        stateDirectory = ServeArguments.absolutePath(state)
        runDirectory = ServeArguments.absolutePath(run)
        liveTCP = try source.string("live-tcp")
        vhostDirectory = try source.string("vhost-dir").map(ServeArguments.absolutePath)
        domains = try source.strings("domain")
        disks = try source.strings("disk")
        name = try source.string("name") ?? "default"
        server = try Self.server(source)
        server.trackingTimeoutSeconds =
            try source.int("tracking-timeout", in: 1...86400)
            ?? ServerConfiguration.defaultTrackingTimeoutSeconds
        server.witnessDirectory = runDirectory + "/tracking"
        server.stateDirectory = stateDirectory
        server.build = Nbdpull.version
        server.adapters = Adapters(
            command: AdapterKeeper.command, directory: runDirectory + "/adapters",
            memoryDirectory: EngineFactory.memoryDirectory)
        server.ownPaths = StateDirectory.ownPaths(in: stateDirectory)
        allowPlaintext = try source.bool("allow-plaintext") ?? false
        copyTimeoutSeconds = try source.int("copy-timeout", in: 1...86400) ?? 30
        scratchDirectory = try source.string("scratch-dir").map(ServeArguments.absolutePath)
        granularityBytes = try TrackingGranularity.checked(
            try source.int("granularity", in: 0...Int.max).map(UInt64.init)
                ?? UInt64(TrackingGranularity.bytesDefault))
        libvirtAccess = try Self.libvirtAccess(source)
        if let group = libvirtAccess?.group, group != server.socketAccess.group ?? group {
            throw .invalidArgument(
                what: "--libvirt-socket-group",
                detail:
                    "it must be the group of --socket-group: both pass through the run directory,"
                    + " which has one")
        }
        libvirtUpstream = try Self.libvirtUpstream(source)
        if libvirtAccess != nil {
            server.otherDescriptors = LibvirtServer.descriptorsMax(
                hasUpstream: libvirtUpstream != nil)
        }
        monitor = try Self.monitor(source)
        eventProgram = try source.string("event-exec").map(ServeArguments.absolutePath)
        let idleAfter =
            try source.int("idle-after", in: 0...JobManager.idleAfterSecondsMax)
            ?? JobManager.idleAfterSecondsDefault
        idleAfterSeconds = idleAfter == 0 ? nil : idleAfter
        if monitor != nil { server.otherDescriptors += MonitorServer.descriptorsMax }
        quiet = try source.bool("quiet") ?? false
        logLevel = try Self.logLevel(source.string("log-level")) ?? (quiet ? .error : .info)
    }

    private static func monitor(_ source: Source) throws(ControlError) -> MonitorSettings? {
        let names = try source.strings("metrics-host")
        // A file may write a port as a number.
        guard let text = try source.text("metrics") else {
            guard let name = names.first else { return nil }
            throw .invalidArgument(
                what: "metrics-host '\(name)'",
                detail: "it names the port that metrics gives: set that, too")
        }
        return try MonitorSettings(text, names: names)
    }

    private static func libvirtAccess(_ source: Source) throws(ControlError) -> SocketAccess? {
        var access = SocketAccess()
        if let text = try source.string("libvirt-socket-mode") {
            access.mode = try SocketPermissions.mode(text, option: "--libvirt-socket-mode")
        }
        if let text = try source.string("libvirt-socket-group") {
            access.group = try SocketPermissions.group(text, option: "--libvirt-socket-group")
        }
        return try source.bool("no-libvirt") ?? false ? nil : access
    }

    private static func libvirtUpstream(
        _ source: Source
    ) throws(ControlError) -> UpstreamSettings? {
        let uri = try source.string("libvirt-upstream-uri")
        guard let path = try source.string("libvirt-upstream") else {
            guard let uri else { return nil }
            throw .invalidArgument(
                what: "libvirt-upstream-uri '\(uri)'",
                detail: "it says how to open the libvirtd that libvirt-upstream names: give that, "
                    + "too")
        }
        return UpstreamSettings(socketPath: ServeArguments.absolutePath(path), uri: uri)
    }

    private static func logLevel(_ text: String?) throws(ControlError) -> Logger.Level? {
        guard let text else { return nil }
        guard let level = Logger.Level(rawValue: text) else {
            let known = Logger.Level.allCases.map(\.rawValue).joined(separator: ", ")
            throw .invalidArgument(
                what: "log-level '\(text)'", detail: "it must be one of \(known)")
        }
        return level
    }

    private static func server(_ source: Source) throws(ControlError) -> ServerConfiguration {
        var server = try ServerConfiguration(
            rings: try source.int("rings", in: 1...64),
            maxConnections: try source.int("max-connections", in: 1...65536) ?? 100,
            maxConnectionsPerJob: try source.int("max-connections-per-job", in: 1...65536),
            maxConnectionsPerPeer: try source.int("max-connections-per-peer", in: 1...65536),
            stallSeconds: try source.int("stall-timeout", in: 0...86400)
                ?? ServerConfiguration.defaultStallSeconds,
            idleSeconds: try source.int("idle-timeout", in: 0...86400) ?? 0,
            copyMemoryBytes: try source.text("copy-memory").map(SizeText.copyMemory)
                ?? ServerConfiguration.defaultCopyMemoryBytes,
            scratchReserve: try source.text("scratch-reserve").map(SizeText.scratchReserve)
                ?? .share(percent: ServerConfiguration.defaultReservePercent),
            socketAccess: SocketAccess(
                mode: try source.string("socket-mode").map(SocketPermissions.mode),
                group: try source.string("socket-group").map(SocketPermissions.group)),
            security: try SecurityArguments.configuration(
                certs: try source.string("tls-certs"), psk: try source.string("tls-psk"),
                verifyPeer: try source.string("tls-verify-peer"),
                authz: try source.string("tls-authz"))
        ).checked()
        if let text = try source.text("vhost-memory") {
            server.guestMemoryBytes = try SizeText.guestMemory(text)
        }
        server.storageSeconds =
            try source.int("storage-timeout", in: 1...3600)
            ?? ServerConfiguration.defaultStorageSeconds
        server.upstreamPatienceSeconds =
            try source.int("upstream-patience", in: 0...86400)
            ?? ServerConfiguration.defaultUpstreamPatienceSeconds
        return server
    }

    private static func fileProvider(
        _ path: String, _ names: SettingNames
    ) async throws -> any ConfigProvider {
        let place = ConfigReader(
            provider: InMemoryProvider(values: ["filePath": ConfigValue(stringLiteral: path)]))
        // A pipe can be read only once, and a device may never end.
        let file = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
        if let kind = SystemCalls.identity(of: file)?.kind, kind != .regular {
            throw ControlError.invalidArgument(
                what: "--config '\(path)'", detail: "it is not a regular file")
        }
        do {
            let text = try InputFile.text(path)
            names.note(text: text, isJSON: path.hasSuffix(".json"))
            // A file in which everything is commented out is one without settings.
            if !path.hasSuffix(".json"), Self.isEmpty(yaml: text) {
                return InMemoryProvider(values: [:])
            }
            // Asked about every key of the file, which there is no other way to learn.
            if path.hasSuffix(".json") {
                let options = JSONSnapshot.ParsingOptions(
                    secretsSpecifier: .dynamic { key, _ in names.note(key: key) })
                return try await FileProvider<JSONSnapshot>(parsingOptions: options, config: place)
            }
            let options = YAMLSnapshot.ParsingOptions(
                secretsSpecifier: .dynamic { key, _ in names.note(key: key) })
            return try await FileProvider<YAMLSnapshot>(parsingOptions: options, config: place)
        } catch let error as ControlError {
            throw error
        } catch {
            throw ControlError.invalidArgument(
                what: "--config '\(path)'", detail: "it cannot be read: \(error)")
        }
    }

    private static func isEmpty(yaml text: String) -> Bool {
        text.split(whereSeparator: \.isNewline).allSatisfy { line in
            let line = line.drop(while: \.isWhitespace)
            return line.isEmpty || line.hasPrefix("#") || line == "---" || line == "..."
        }
    }

    /// Typed looks into the sources; a value of the wrong kind is an error, never a default.
    private struct Source {
        let reader: ConfigReader
        let names: SettingNames

        func string(_ key: String) throws(ControlError) -> String? {
            let text = try look(key, "a text", [.text, .other]) { try reader.fetchStringValue(key) }
            guard text != "" else {
                throw .invalidArgument(what: "setting '\(key)'", detail: "it is empty")
            }
            return text
        }

        /// A text that a file may also write as a number.
        func text(_ key: String) throws(ControlError) -> String? {
            names.note(known: key)
            if names.hasKind([.number], key),
                let number = try? reader.requiredInt(forKey: ConfigKey(key))
            {
                return String(number)
            }
            return try string(key)
        }

        func strings(_ key: String) throws(ControlError) -> [String] {
            names.note(known: key)
            if let list = try? reader.requiredStringArray(forKey: ConfigKey(key)) { return list }
            return try string(key).map { [$0] } ?? []
        }

        func bool(_ key: String) throws(ControlError) -> Bool? {
            try look(key, "true or false", [.bool]) {
                try reader.requiredBool(forKey: ConfigKey(key))
            }
        }

        func int(_ key: String, in range: ClosedRange<Int>) throws(ControlError) -> Int? {
            let value = try look(key, "a number", [.number]) {
                try reader.requiredInt(forKey: ConfigKey(key))
            }
            guard let value, !range.contains(value) else { return value }
            throw .invalidArgument(
                what: "\(key) \(value)",
                detail: "it must be between \(range.lowerBound) and \(range.upperBound)")
        }

        private func look<Value>(
            _ key: String, _ kind: String, _ kinds: Set<SettingNames.JSONKind>,
            _ body: () throws -> Value
        ) throws(ControlError) -> Value? {
            names.note(known: key)
            guard names.hasKind(kinds, key) else {
                throw .invalidArgument(what: "setting '\(key)'", detail: "it must be \(kind)")
            }
            do {
                return try body()
            } catch {
                // Only the error's text distinguishes a missing value from a wrong one.
                guard !"\(error)".hasPrefix("Missing required config value") else { return nil }
                throw .invalidArgument(what: "setting '\(key)'", detail: "it must be \(kind)")
            }
        }
    }
}

extension ConfigReader {
    /// The text of a key; throws when it is missing.
    fileprivate func fetchStringValue(_ key: String) throws -> String {
        try requiredString(forKey: ConfigKey(key))
    }
}
