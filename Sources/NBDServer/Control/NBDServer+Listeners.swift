import BoundedCalls
package import ServerInterface
import Synchronization
import SystemLayer

/// Listeners of live exports and of jobs.
extension NBDServer {
    /// Adds a listener for the live exports; returns the endpoint with its real port.
    package func listenLive(
        _ endpoint: ListenEndpoint, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint {
        serveLive(try await open(endpoint, scope: live, security: security).get())
    }

    /// Serves live exports on a socket that listens already, which becomes the server's own.
    ///
    /// Returns where it is bound.
    package func adoptLive(
        descriptor: Int32, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint {
        guard security == .plaintext || shared.security.offersTLS else { throw .tlsNotConfigured }
        do throws(SystemFault) {
            let listener = try Listener.adopting(descriptor)
            let endpoint = try ListenEndpoint(boundTo: descriptor, port: listener.port)
            let place = SocketPlace(.passed, endpoint.text)
            return serveLive(wrap(listener, live, security, endpoint, passed: place))
        } catch {
            throw .cannotListen(
                endpoint: "descriptor \(descriptor)", errorText: error.errorText)
        }
    }

    private func serveLive(_ opened: OpenedListener) -> ListenEndpoint {
        state.withLock { $0.liveListeners.append(opened.listener) }
        shared.acceptor(for: .guests).post(.addListener(opened.listener))
        return opened.endpoint
    }

    /// Adds a disk's listener for a guest that comes with vhost-user.
    func listenVhost(_ disk: DiskID, path: String) async throws(ServerFault) {
        guard let export = state.withLock({ $0.disks[disk] }) else { throw .unknownDisk }
        // Else every front-end would be turned away, one by one.
        guard shared.spareDescriptorsEnd >= Limits.guestDescriptorsMin else {
            throw .limitReached(
                what: "descriptors can be spared for front-ends of vhost-user, which need"
                    + " \(Limits.guestDescriptorsMin): raise LimitNOFILE (ulimit -n), or lower"
                    + " --max-connections",
                limit: max(shared.spareDescriptorsEnd, 0))
        }
        let opened = try await open(
            .unix(path: path, mode: 0o600), scope: ExportScope(jobID: nil), security: .plaintext,
            guestOf: export
        ).get()
        state.withLock { $0.vhostListeners[disk] = opened.listener }
        shared.mailboxes[export.homeRing].post(.addListener(opened.listener))
    }

    struct OpenedListener: Sendable {
        let listener: RingListener
        let endpoint: ListenEndpoint
    }

    /// Binds a listener; it accepts only once a ring has it.
    ///
    /// The file system of a socket, or the name server for a host, is waited for with a limit.
    func open(
        _ endpoint: ListenEndpoint, scope: ExportScope, security: ListenerSecurity,
        guestOf: LiveExport? = nil
    ) async -> Result<OpenedListener, ServerFault> {
        guard security == .plaintext || shared.security.offersTLS else {
            return .failure(.tlsNotConfigured)
        }
        let what =
            switch endpoint {
            case .unix(let path, _): "'\(path)'"
            case .tcp: endpoint.place.text
            }
        return await storage.run(
            at: endpoint.place, what: what,
            .begin(milliseconds: shared.configuration.storageMilliseconds), comesEarly: true,
            late: { $0.listener.close() }
        ) {
            self.bind(endpoint, for: scope.jobID) { listener, bound in
                self.wrap(listener, scope, security, bound, guestOf: guestOf)
            }
        }
    }

    private func bind(
        _ endpoint: ListenEndpoint, for job: String?,
        _ wrap: (consuming Listener, ListenEndpoint) -> OpenedListener
    ) -> Result<OpenedListener, ServerFault> {
        if let inherited = inherited(endpoint) { return .success(wrap(inherited, endpoint)) }
        do throws(SystemFault) {
            switch endpoint {
            case .unix(let path, let mode):
                let access = shared.configuration.socketAccess
                let listener = try whenFree(for: job) { () throws(SystemFault) in
                    try Listener.unix(path: path, mode: access.mode ?? mode, group: access.group)
                }
                return .success(wrap(listener, endpoint))
            case .tcp(let host, let port?):
                guard job == nil || !waits(for: endpoint, besides: job) else {
                    throw SystemFault(call: "bind", errno: Errno.addressInUse)
                }
                let listener = try whenFree(for: job) { () throws(SystemFault) in
                    try Listener.tcp(host: host, port: port)
                }
                let bound = ListenEndpoint.tcp(host: host, port: listener.port)
                return .success(wrap(listener, bound))
            case .tcp(let host, nil):
                return try openAutomatic(host, wrap)
            }
        } catch {
            return .failure(
                .cannotListen(
                    endpoint: endpoint.text, errorText: error.errorText + endpoint.remedy(error)))
        }
    }

    /// The kernel closes the sockets of a killed server's rings a moment after its end: what that
    /// one listened on, for machines or for a job that goes on, is waited for.
    private func whenFree(
        for job: String?, _ bind: () throws(SystemFault) -> Listener
    ) throws(SystemFault) -> Listener {
        let wasThere = job.map { job in state.withLock { $0.expected[job] != nil } } ?? true
        let end = MonotonicClock.now() + Limits.resumeInUseNanoseconds
        while true {
            do throws(SystemFault) {
                return try bind()
            } catch {
                guard wasThere, error.errno == Errno.addressInUse, MonotonicClock.now() < end else {
                    throw error
                }
                _ = Latch(count: 1).wait(milliseconds: 5)
            }
        }
    }

    /// The listener that an earlier server had there; a socket that does not fit is closed.
    private func inherited(_ endpoint: ListenEndpoint) -> Listener? {
        guard let place = SocketPlace(endpoint),
            let number = shared.configuration.sockets.take(place)
        else { return nil }
        let descriptor = OwnedDescriptor(adopting: number)
        do throws(SystemFault) {
            switch endpoint {
            case .unix(let path, let mode):
                let access = shared.configuration.socketAccess
                return try .inherited(
                    descriptor, path: path, mode: access.mode ?? mode, group: access.group)
            case .tcp(_, let port): return try .inherited(descriptor, port: port ?? 0)
            }
        } catch {
            return nil
        }
    }

    private func openAutomatic(
        _ host: String, _ wrap: (consuming Listener, ListenEndpoint) -> OpenedListener
    ) throws(SystemFault) -> Result<OpenedListener, ServerFault> {
        let awaited = awaitedPorts
        for port in Limits.automaticPorts where !awaited.contains(port) {
            do throws(SystemFault) {
                let listener = try Listener.tcp(host: host, port: port)
                return .success(wrap(listener, .tcp(host: host, port: port)))
            } catch {
                guard error.errno == Errno.addressInUse else { throw error }
            }
        }
        let ports = Limits.automaticPorts
        return .failure(
            .cannotListen(
                endpoint: "\(host):\(ports.lowerBound)-\(ports.upperBound)",
                errorText: "Failed to find an available port: Address already in use"))
    }

    /// Ports of jobs that wait for their disks: their clients come back there.
    private var awaitedPorts: Set<UInt16> {
        state.withLock { state in
            Set(state.expected.values.compactMap(\.resumption.configuration.endpoint.port))
        }
    }

    /// Whether a place belongs to another job that waits for its disks.
    private func waits(for endpoint: ListenEndpoint, besides job: String?) -> Bool {
        state.withLock { state in
            state.expected.contains {
                $0.key != job && $0.value.resumption.configuration.endpoint == endpoint
            }
        }
    }

    private func wrap(
        _ listener: consuming Listener, _ scope: ExportScope, _ security: ListenerSecurity,
        _ endpoint: ListenEndpoint, guestOf: LiveExport? = nil, passed: SocketPlace? = nil
    ) -> OpenedListener {
        let number = state.withLock { state in
            state.lastListener += 1
            return state.lastListener
        }
        let sockets = shared.configuration.sockets
        let place = passed ?? SocketPlace(endpoint)
        if let place { sockets.added(place, listener.raw) }
        return OpenedListener(
            listener: RingListener(
                number: number, scope: scope, security: security, place: endpoint.place,
                listener: listener, guestOf: guestOf,
                onClose: { if let place { sockets.removed(place) } }),
            endpoint: endpoint)
    }

    /// The ring that accepts from a listener.
    func acceptor(of listener: RingListener) -> Mailbox<RingMessage> {
        listener.guestOf.map { shared.mailboxes[$0.homeRing] }
            ?? shared.acceptor(for: listener.scope.duty)
    }

    /// Stops accepting and removes a unix socket's file; what hangs is waited for a moment only,
    /// and done later.
    func close(_ listener: RingListener) async {
        let removed = Replies()
        acceptor(of: listener)
            .post(.removeListener(number: listener.number, removed.ticket()))
        _ = await storage.run(
            at: listener.place, what: "the socket", .end(milliseconds: Limits.closingMilliseconds)
        ) { () -> Result<Bool, ServerFault> in
            // Its descriptor is closed only when no ring uses it any more.
            removed.wait(until: .max)
            listener.close()
            return .success(true)
        }
    }
}

extension ListenEndpoint {
    /// What to do where it cannot be listened on; empty: nothing better than what the error says.
    func remedy(_ fault: SystemFault) -> String {
        guard case .unix = self else { return "" }
        return switch fault.errno {
        case Errno.nameTooLong: ": the path of a unix socket has at most 107 bytes"
        case Errno.exists: ": what lies there is no socket: remove it, or name another path"
        case Errno.addressInUse: ": another socket listens there: end it, or name another path"
        case Errno.notFound: ": its folder does not exist"
        default: ""
        }
    }

    /// Where a passed socket listens, before it is adopted.
    package static func bound(to descriptor: Int32) throws(ServerFault) -> ListenEndpoint {
        do throws(SystemFault) {
            return try ListenEndpoint(boundTo: descriptor, port: 0)
        } catch {
            throw .cannotListen(
                endpoint: "descriptor \(descriptor)", errorText: error.errorText)
        }
    }

    init(boundTo descriptor: Int32, port: UInt16) throws(SystemFault) {
        if let path = try Listener.unixPath(of: descriptor) {
            self = .unix(path: path, mode: 0)
        } else {
            self = .tcp(host: try Listener.tcpHost(of: descriptor), port: port)
        }
    }

    /// The TCP port, if it is known.
    fileprivate var port: UInt16? {
        guard case .tcp(_, let port) = self else { return nil }
        return port
    }

    /// The endpoint in an error text.
    var text: String {
        switch self {
        case .unix(let path, _): path
        case .tcp(let host, let port): port.map { "\(host):\($0)" } ?? host
        }
    }

    /// What binding it depends on.
    var place: StoragePlace {
        switch self {
        case .unix(let path, _): .of(path)
        case .tcp(let host, _): .host(host)
        }
    }
}
