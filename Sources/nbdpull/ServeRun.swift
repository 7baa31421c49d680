import Control
import Foundation
import Handover
import NBDServer
import ServerInterface

/// One run of the server, from the lock to the last flush.
///
/// Mostly it serves once. When another server was to take its place and did not come up, it serves
/// again: by the same steps as after a kill, on the sockets that it never closed.
struct ServeRun {
    let settings: ServeSettings
    let environment: [String: String]
    let takesOver: Bool

    var controlSocket: String { settings.runDirectory + "/control.sock" }
    var libvirtSocket: String { settings.runDirectory + "/libvirt-sock" }
    var liveSocket: ListenEndpoint {
        .unix(path: settings.runDirectory + "/live.sock", mode: 0o600)
    }

    func run() async throws {
        // Everything that can be refused is checked before anything is opened.
        let start = try startDomains()
        let liveTCP = try await liveTCPEndpoint()
        let sinks = EventSinks(
            log: EventLogger(level: settings.logLevel), program: try eventProgram())
        let passed = try SocketActivation.descriptors(
            environment, processID: ProcessInfo.processInfo.processIdentifier)
        let next = NextServer(words: CommandLine.arguments, environment: environment)
        let setup = ServeSetup(
            run: self, start: start, liveTCP: liveTCP,
            identity: ServerIdentity(
                program: Nbdpull.version, executable: next.path,
                stateDirectory: settings.stateDirectory, runDirectory: settings.runDirectory),
            serviceManager: ServiceManager(environment), sinks: sinks, wishes: Wishes(next: next))
        let newcomer = try await takesOver ? ask(setup) : nil
        do {
            try await run(setup, passed, newcomer)
        } catch {
            newcomer?.failed((error as? ControlError)?.message ?? "\(error)")
            sinks.finish()
            sinks.log.flush(orLeaveWith: 1)
            throw error
        }
        sinks.finish()
        sinks.log.flush(orLeaveWith: 0)
    }

    private func eventProgram() throws(ControlError) -> EventProgram? {
        guard let path = settings.eventProgram else { return nil }
        let kept = environment.filter { ["PATH", "HOME", "LANG", "TZ"].contains($0.key) }
        return try EventProgram(
            path: path,
            environment: kept.merging(["NBDPULL_SOCKET": controlSocket]) { $1 })
    }

    /// Asks the server that runs, having checked what can be checked; nil when there is none.
    private func ask(_ setup: ServeSetup) async throws(ControlError) -> Newcomer? {
        try StateDirectory.checkCanGoOn(
            settings.stateDirectory, given: Set(setup.start.map(\.definition.name)))
        do throws(HandoverFault) {
            if let newcomer = try await Newcomer.ask(setup.identity) { return newcomer }
        } catch {
            throw .cannotTakeOver(error.text)
        }
        if let silent = Self.silentServer(controlSocket) { throw .cannotTakeOver(silent) }
        Console.error("nbdpull: there is no server to take over from: starting as ever")
        return nil
    }

    private static func silentServer(_ socket: String) -> String? {
        do throws(ControlError) {
            try ControlServer.clearStaleSocket(socket)
            return nil
        } catch {
            return
                "a server runs that does not let another take its place (\(error.message)): stop it"
                + " first"
        }
    }

    private func run(
        _ setup: ServeSetup, _ passed: [Int32], _ newcomer: Newcomer?
    ) async throws {
        try makeDirectory(settings.runDirectory, what: "run directory")
        if let directory = settings.vhostDirectory {
            try makeDirectory(directory, what: "directory for vhost-user sockets")
        }
        var sockets = SocketKeep()
        _ = sockets.offer(ServiceManager.stored(environment))
        setup.wishes.hearOtherSignals()
        var serving = Serving(setup: setup, sockets: sockets, passed: passed, newcomer: newcomer)
        while true {
            guard case .left(let request, let kept) = try await serving.run() else { return }
            guard let request else { return }
            request.give(kept.waiting)
            switch await request.outcome() {
            case .serving:
                setup.serviceManager.tell("MAINPID=\(request.process)\nREADY=1")
                // Nobody accepts on this server's descriptors of them.
                _ = kept.closeRest()
                request.confirm()
                if setup.wishes.isStopWished { request.stopNewcomer() }
                Console.error("nbdpull: \(request.text) serves now; this one ends")
                return
            case .failed(let reason):
                Console.error(
                    "error: \(request.text) did not take over (\(reason)): this server,"
                        + " version \(Nbdpull.version), goes on")
            }
            sockets = kept
            serving = Serving(setup: setup, sockets: sockets, passed: [], newcomer: nil)
            serving.goesOn = true
        }
    }

    // MARK: Before anything is opened

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

    var liveTCPSecurity: ListenerSecurity {
        SecurityArguments.listener(settings.security, allowPlaintext: settings.allowPlaintext)
    }

    private func makeDirectory(_ path: String, what: String) throws(ControlError) {
        if path != settings.runDirectory, FileManager.default.fileExists(atPath: path) { return }
        do {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
        } catch {
            throw ControlError(
                .systemError, code: "run-directory-unusable", status: 500,
                detail: "cannot create the \(what) '\(path)': "
                    + error.localizedDescription)
        }
        guard let group = settings.server.socketAccess.group ?? settings.libvirtAccess?.group else {
            return
        }
        do throws(SystemCalls.Failure) {
            try SystemCalls.letThrough(group: group, path: path)
        } catch {
            throw ControlError(
                .systemError, code: "run-directory-unusable", status: 500,
                detail: "cannot give the \(what) '\(path)' to group"
                    + " \(group): \(error.text)")
        }
    }
}

extension ControlError {
    /// The server that runs goes on; `detail` may be an error of its own.
    static func cannotTakeOver(_ detail: String) -> ControlError {
        let prefix = ErrorCategory.operationInvalid.prefix
        let reason = detail.hasPrefix(prefix) ? detail.dropFirst(prefix.count) : detail[...]
        return ControlError(
            .operationInvalid, code: "cannot-take-over", status: 409,
            detail: "cannot take over: \(reason)")
    }
}
