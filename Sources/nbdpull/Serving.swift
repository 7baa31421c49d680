import Control
import Foundation
import Handover
import Logging
import NBDServer
import Pushing
import ServerInterface
import ServiceLifecycle
import Synchronization

/// What all servings of one run share.
struct ServeSetup: Sendable {
    let run: ServeRun
    let start: [StartDomain]
    let liveTCP: ListenEndpoint?
    let identity: ServerIdentity
    let serviceManager: ServiceManager
    let sinks: EventSinks
    let wishes: Wishes

    var settings: ServeSettings { run.settings }
}

/// An engine with its jobs and front ends, from the lock of the state directory until it is given
/// back.
struct Serving {
    let setup: ServeSetup
    /// Sockets that are there already.
    let sockets: SocketKeep
    /// Sockets of the service manager.
    let passed: [Int32]
    /// Whose place this serving takes.
    let newcomer: Newcomer?
    /// Another server had the state directory for a moment, and may still hold it.
    var goesOn = false

    private var settings: ServeSettings { setup.settings }

    enum Ending {
        case stopped
        /// The disks are let go of: for this newcomer, or for whoever comes.
        case left(HandoverRequest?, SocketKeep)
    }

    func run() async throws -> Ending {
        var configuration = settings.server
        configuration.sockets = sockets
        let engine: any BackupEngine
        let state: StateDirectory
        if let newcomer {
            // As much as can be is there before machines begin to wait.
            configuration.takesOver = true
            engine = try EngineFactory.make(configuration)
            do throws(ControlError) {
                try await take(newcomer)
            } catch {
                await engine.shutdown()
                throw error
            }
            state = try StateDirectory(path: settings.stateDirectory)
            engine.hasTakenOver()
        } else {
            state = try await openState()
            if !goesOn { try clearStaleSockets() }
            engine = try EngineFactory.make(configuration)
        }
        defer { state.release() }
        return try await run(engine, state)
    }

    private func take(_ newcomer: Newcomer) async throws(ControlError) {
        do throws(HandoverFault) {
            let found = try await newcomer.take()
            newcomer.beat()
            _ = sockets.offer(found)
        } catch {
            throw .cannotTakeOver(error.text)
        }
    }

    /// A server that goes on waits for what is left of the other.
    private func openState() async throws(ControlError) -> StateDirectory {
        let end = ContinuousClock.now + .seconds(Self.lockSeconds)
        while true {
            do throws(ControlError) {
                return try StateDirectory(path: settings.stateDirectory)
            } catch {
                guard goesOn, error.code == "state-directory-locked", ContinuousClock.now < end
                else {
                    throw error
                }
                try? await Task.sleep(for: .milliseconds(50))
            }
        }
    }

    private static let lockSeconds = 60

    private func clearStaleSockets() throws(ControlError) {
        if !sockets.hasWaiting(.control) {
            try ControlServer.clearStaleSocket(setup.run.controlSocket)
        }
        if settings.libvirtAccess != nil, !sockets.hasWaiting(.libvirt) {
            try ControlServer.clearStaleSocket(setup.run.libvirtSocket)
        }
    }

    private func run(_ engine: any BackupEngine, _ state: StateDirectory) async throws -> Ending {
        let sinks = setup.sinks
        let events = EventLog { sinks.take($0) }
        sinks.program?.report(to: events)
        let freezer = settings.libvirtUpstream.map {
            GuestFreezer(upstream: $0, state: state, events: events)
        }
        let manager = JobManager(
            engine: engine, state: state, settings: managing(freezer), events: events)
        await manager.activate()
        let listening = Listening()
        var warnings = await manager.restore(setup.start) {
            await listening.begin { () throws(ControlError) in try await listen(engine) }
        }
        await manager.keepOpening()
        warnings += [
            (settings.stateDirectory, "the state directory"),
            (settings.runDirectory, "the run directory"),
        ].compactMap { DirectoryTrust.warning($0, what: $1) }
        warnings += await freezer?.recover() ?? GuestFreezer.leftovers(state)
        for warning in warnings where !settings.quiet {
            Console.error("warning: \(warning)")
        }
        // Printed even with --quiet: the server is not what it seems.
        for problem in await manager.problems { Console.error("error: \(problem)") }
        do {
            let live = try await listening.endpoints()
            let fronts = try Fronts(setup, sockets)
            let forgetting = forgetSockets(manager)
            defer { forgetting.cancel() }
            let served = ServedFronts(
                serving: self, manager: manager, engine: engine, freezer: freezer, live: live,
                fronts: fronts)
            return try await served.run()
        } catch {
            // The jobs of an earlier server are not to end because this one cannot begin.
            await manager.abandon()
            try? await engine.leave()
            await manager.hasLeft()
            throw error
        }
    }

    /// Closes sockets of the last server that nobody wants.
    ///
    /// Those of a disk or job that is late are closed when it has turned out not to come; until
    /// then clients wait in their queues.
    private func forgetSockets(_ manager: JobManager) -> Task<Void, Never> {
        Task {
            while !Task.isCancelled {
                let awaited = await manager.awaitedSockets
                setup.serviceManager.forget(sockets.closeRest(but: awaited))
                guard !awaited.isEmpty else { return }
                try? await Task.sleep(for: .seconds(1))
            }
        }
    }

    private func managing(_ freezer: GuestFreezer?) -> JobManagerSettings {
        var managing = JobManagerSettings(
            runDirectory: settings.runDirectory, liveEndpoint: setup.run.liveSocket,
            allowPlaintext: settings.allowPlaintext,
            offersTLS: settings.security.offersTLS,
            copyTimeoutMilliseconds: UInt64(settings.copyTimeoutSeconds) * 1000,
            granularityBytes: settings.granularityBytes,
            scratchDirectory: settings.scratchDirectory)
        managing.vhostDirectory = settings.vhostDirectory
        managing.countsCrashes = !goesOn
        managing.idleAfterSeconds = settings.idleAfterSeconds
        managing.storageMilliseconds = Int32(settings.server.storageSeconds * 1000)
        managing.freezer = freezer
        managing.pusher = PushProcesses(command: PushWorker.command)
        return managing
    }

    /// Returns where the live exports are reached.
    private func listen(_ engine: any BackupEngine) async throws(ControlError) -> [ListenEndpoint] {
        let liveSocket = setup.run.liveSocket
        let security = setup.run.liveTCPSecurity
        var bound = [liveSocket]
        do throws(ServerFault) {
            // The socket's permissions admit only the server's own user.
            _ = try await engine.listenLive(
                liveSocket, security: settings.security.offersTLS ? .selective : .plaintext)
            if let liveTCP = setup.liveTCP {
                bound.append(try await engine.listenLive(liveTCP, security: security))
            }
        } catch {
            throw controlError(from: error)
        }
        for descriptor in passed + sockets.takeAll(.passed).map(\.descriptor) {
            bound.append(
                try await PassedSocket.adopt(
                    descriptor, engine, security, settings.allowPlaintext))
        }
        return bound
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

/// The sockets of the front ends.
struct Fronts: Sendable {
    let control: FrontSocket
    let libvirt: FrontSocket?
    let monitor: MonitorListener?
    let door: HandoverDoor

    init(_ setup: ServeSetup, _ sockets: SocketKeep) throws(ControlError) {
        if let place = setup.settings.monitor {
            monitor = try MonitorListener(place, sockets)
        } else {
            monitor = nil
        }
        do throws(HandoverFault) {
            control = try FrontSocket(
                .control, path: setup.run.controlSocket, mode: 0o600, group: nil, sockets)
            if let access = setup.settings.libvirtAccess {
                libvirt = try FrontSocket(
                    .libvirt, path: setup.run.libvirtSocket, mode: access.mode ?? 0o600,
                    group: access.group, sockets)
            } else {
                libvirt = nil
            }
            door = try HandoverDoor(
                setup.identity, sockets, isManaged: setup.serviceManager.isThere)
        } catch {
            throw ControlError(
                .systemError, code: "cannot-listen", status: 500, detail: error.text)
        }
    }

    func close(keepingFiles: Bool) {
        door.close(keepingFile: keepingFiles)
        control.close(keepingFile: keepingFiles)
        libvirt?.close(keepingFile: keepingFiles)
        monitor?.close(isHandedOver: keepingFiles)
    }
}
