import Control
import Foundation
import Handover
import Logging
import ServerInterface
import ServiceLifecycle
import Synchronization

/// The front ends of a serving, until somebody wants an end.
struct ServedFronts: Sendable {
    let serving: Serving
    let manager: JobManager
    let engine: any BackupEngine
    let freezer: GuestFreezer?
    let live: [ListenEndpoint]
    let fronts: Fronts
    private let isAnnounced = Once()
    /// At a stop: jobs and disks have come to their end.
    private let hasEnded = Gate()

    init(
        serving: Serving, manager: JobManager, engine: any BackupEngine, freezer: GuestFreezer?,
        live: [ListenEndpoint], fronts: Fronts
    ) {
        self.serving = serving
        self.manager = manager
        self.engine = engine
        self.freezer = freezer
        self.live = live
        self.fronts = fronts
    }

    private var setup: ServeSetup { serving.setup }
    private var settings: ServeSettings { serving.setup.settings }
    private var wishes: Wishes { serving.setup.wishes }
    /// Front ends that are to make way for another server have so long for their callers.
    private static let farewellSeconds = 5

    func run() async throws -> Serving.Ending {
        wishes.hearStopSignals()
        let engine = engine
        wishes.whenReloadWished { Task { await ReloadService(engine: engine).reload() } }
        fronts.door.open { request in Task { await receive(request) } }
        while true {
            do {
                try await serve()
            } catch {
                guard isLeaving else {
                    fronts.close(keepingFiles: false)
                    throw error
                }
            }
            switch wishes.current {
            case .stop, nil:
                fronts.close(keepingFiles: false)
                return .stopped
            case .leave:
                await leaveForNobody()
                return .left(nil, SocketKeep())
            case .handOver(let request):
                switch await leave(to: request) {
                case .success(let kept):
                    wishes.settle()
                    return .left(request, kept)
                case .failure(let obstacle):
                    wishes.settle()
                    await manager.stay()
                    refuse(request, obstacle.text)
                }
            }
        }
    }

    private var isLeaving: Bool {
        switch wishes.current {
        case .leave, .handOver: true
        case .stop, nil: false
        }
    }

    // MARK: Another server wants to take over

    /// Prepares for it; everything that is refused here has disturbed nobody.
    private func receive(_ request: HandoverRequest) async {
        guard await request.welcome(setup.identity) else { return }
        Console.error("nbdpull: \(request.text) takes over from version \(Nbdpull.version)")
        setup.serviceManager.tellReloading()
        if let freezer, await !freezer.isIdle {
            return refuse(request, "a guest's file systems are frozen, or being thawed")
        }
        do throws(ControlError) {
            try await manager.prepareToLeave()
        } catch {
            return refuse(request, error.message)
        }
        if wishes.wish(.handOver(request)) { return }
        await manager.stay()
        refuse(request, "it is about to end")
    }

    private func refuse(_ request: HandoverRequest, _ reason: String) {
        request.refuse(reason)
        Console.error("error: \(request.text) cannot take over: \(reason)")
        setup.serviceManager.tell("READY=1")
    }

    private func leave(to request: HandoverRequest) async -> Result<SocketKeep, HandoverFault> {
        guard request.isAlive else { return .failure(HandoverFault("it has ended")) }
        return await leave()
    }

    /// This process ends in any case, and with it all that it has under way.
    private func leaveForNobody() async {
        setup.serviceManager.tell("STOPPING=1")
        do {
            try await manager.prepareToLeave()
            _ = try await leave().get()
        } catch {
            let text = (error as? ControlError)?.message ?? (error as? HandoverFault)?.text ?? ""
            Console.error("error: the next server begins as after a kill: \(text)")
        }
    }

    /// Lets go of everything; the sockets stay open for whoever is next.
    private func leave() async -> Result<SocketKeep, HandoverFault> {
        let kept = serving.sockets.duplicated()
        do throws(ServerFault) {
            try await engine.leave()
        } catch {
            _ = kept.closeRest()
            return .failure(HandoverFault(controlError(from: error).message))
        }
        await manager.hasLeft()
        fronts.close(keepingFiles: true)
        // They live on in the other keep.
        _ = serving.sockets.closeRest()
        return .success(kept)
    }

    // MARK: Serving

    private func serve() async throws {
        var logger = Logger(label: "nbdpull") { StreamLogHandler.standardError(label: $0) }
        logger.logLevel = settings.quiet ? .error : .warning
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: try services(logger).map { .init(service: $0) }, logger: logger))
        let running = Task { try await group.run() }
        wishes.whenWished {
            Task {
                await group.triggerGracefulShutdown()
                // Machines have no disks any more: jobs end first, however long it takes.
                if !isLeaving { await hasEnded.wait() }
                // Callers that do not send what they have begun, or take their answers, hold nobody
                // up.
                try? await Task.sleep(for: .seconds(Self.farewellSeconds))
                running.cancel()
            }
        }
        do {
            try await running.value
        } catch is CancellationError where hasEnded.isOpen {
            return
        }
    }

    private func services(_ logger: Logger) throws -> [any Service] {
        var services: [any Service] = [
            ControlServer(
                routes: Routes(manager: manager, version: Nbdpull.version),
                socketPath: setup.run.controlSocket, socket: try duplicate(fronts.control),
                logger: logger, onReady: announce)
        ]
        if let libvirt = fronts.libvirt {
            services.append(
                LibvirtServer(
                    manager: manager, socketPath: setup.run.libvirtSocket,
                    socket: try duplicate(libvirt), upstream: settings.libvirtUpstream,
                    places: LivePlaces(live)))
        }
        if let monitor = fronts.monitor, let place = settings.monitor {
            services.append(
                MonitorServer(
                    socket: try monitor.duplicate(), settings: place, manager: manager,
                    version: Nbdpull.version))
        }
        // The last service is stopped first: jobs end while the sockets still answer.
        services.append(StopService { await end() })
        return services
    }

    private func duplicate(_ socket: FrontSocket) throws(ControlError) -> Int32 {
        do throws(HandoverFault) {
            return try socket.duplicate()
        } catch {
            throw ControlError(
                .systemError, code: "cannot-listen", status: 500, detail: error.text)
        }
    }

    @Sendable private func announce() async {
        guard isAnnounced.take() else { return }
        if let newcomer = serving.newcomer {
            await newcomer.serving()
            Console.error(
                "nbdpull: took over from version \(newcomer.program), process \(newcomer.process)")
        }
        if let monitor = fronts.monitor, !settings.quiet {
            Console.error("nbdpull: metrics at http://\(monitor.address)/")
        }
        Console.error("nbdpull: ready, control socket \(setup.run.controlSocket)")
        let problems = await manager.problems
        let status = problems.isEmpty ? "" : "\nSTATUS=degraded: \(problems[0])"
        setup.serviceManager.tell("READY=1" + status)
        setup.serviceManager.keep(serving.sockets)
    }

    private func end() async {
        guard !isLeaving else { return manager.events.endStreams() }
        setup.serviceManager.tell("STOPPING=1")
        // Guests keep running while jobs end.
        async let thawed: Void? = freezer?.shutdown()
        await manager.shutdown()
        await thawed
        hasEnded.open()
    }
}

/// Opens once, for all who wait.
private final class Gate: Sendable {
    private let opened = Atomic<Bool>(false)
    var isOpen: Bool { opened.load(ordering: .acquiring) }
    func open() { opened.store(true, ordering: .releasing) }
    func wait() async {
        while !isOpen { try? await Task.sleep(for: .milliseconds(50)) }
    }
}

/// True once.
private final class Once: Sendable {
    private let isTaken = Atomic<Bool>(false)
    func take() -> Bool { !isTaken.exchange(true, ordering: .acquiringAndReleasing) }
}
