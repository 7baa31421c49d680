import Disk
import IORing
import NBDProtocol
import Synchronization

/// Disks and listeners of live exports.
extension NBDServer {
    /// Opens and locks the source and publishes its live export.
    package func attachDisk(
        _ configuration: DiskConfiguration
    ) async throws(ServerFault) -> DiskID {
        try await onControlThread { self.attach(configuration) }.get()
    }

    /// Withdraws the live export, disconnects its clients after their requests in flight, closes
    /// the source.
    package func detachDisk(_ disk: DiskID) async throws(ServerFault) {
        _ = try await onControlThread { self.detach(disk) }.get()
    }

    /// A momentary look at an attached disk.
    package func diskStatus(_ disk: DiskID) async throws(ServerFault) -> DiskStatus {
        try await onControlThread { self.status(disk) }.get()
    }

    /// Adds a listener for the live exports; returns the endpoint with its real port.
    package func listenLive(
        _ endpoint: ListenEndpoint, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint {
        try await onControlThread { self.addLiveListener(endpoint, security) }.get()
    }

    /// Serves live exports on a socket that listens already, which becomes the server's own.
    ///
    /// Returns where it is bound.
    package func adoptLive(
        descriptor: Int32, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint {
        try await onControlThread { self.adopt(descriptor, security) }.get()
    }

    // MARK: On the control thread

    private func attach(_ configuration: DiskConfiguration) -> Result<DiskID, ServerFault> {
        guard !state.withLock({ $0.isStopping }) else { return .failure(.shuttingDown) }
        if live.target(named: configuration.exportName) != nil {
            return .failure(.exportNameTaken(name: configuration.exportName))
        }
        let source: RawSource
        do throws(SourceFault) {
            source = try RawSource(
                path: configuration.path,
                expected: configuration.kind == .file ? .regular : .blockDevice,
                readOnly: configuration.readOnly, direct: configuration.cacheMode == .none)
        } catch {
            return .failure(Self.fault(configuration.path, error))
        }
        let home = shared.pickRing(for: .guests)
        let homeCount = state.withLock { $0.disks.values.count { $0.homeRing == home } }
        guard homeCount < Limits.disksPerRing else {
            return .failure(.limitReached(what: "disks of a ring", limit: Limits.disksPerRing))
        }
        let disk = state.withLock { state in
            state.lastDisk += 1
            return DiskID(number: state.lastDisk)
        }
        let export = LiveExport(configuration, disk: disk, source: source, homeRing: home)
        let tracking = openTracking(configuration, source)
        let added = Latch(count: 1)
        shared.mailboxes[home].post(.addDisk(export, tracking?.1, added))
        _ = added.wait(milliseconds: -1)
        state.withLock { state in
            state.disks[disk] = export
            state.tracking[disk] = tracking?.0
        }
        _ = live.add(.live(export))
        return .success(disk)
    }

    func detach(_ disk: DiskID) -> Result<Bool, ServerFault> {
        guard let export = state.withLock({ $0.disks[disk] }) else {
            return .failure(.unknownDisk)
        }
        live.remove(name: export.description.name)
        if !closeConnections(of: export.id, gracefully: true) {
            _ = closeConnections(of: export.id, gracefully: false)
        }
        let removed = Latch(count: 1)
        let outcome = Outcome()
        shared.mailboxes[export.homeRing].post(.removeDisk(disk, outcome, removed))
        _ = removed.wait(milliseconds: -1)
        guard outcome.succeeded.load(ordering: .acquiring) else {
            _ = live.add(.live(export))
            return .failure(.diskBusy(name: export.description.name))
        }
        state.withLock { _ = $0.disks.removeValue(forKey: disk) }
        guard !export.source.isReadOnly else { return .success(true) }
        do throws(SystemFault) {
            try export.source.sync()
        } catch {
            return .failure(
                .sourceUnusable(
                    path: export.source.path, detail: "\(error.call): \(error.errorText)"))
        }
        closeTracking(disk, export.source)
        return .success(true)
    }

    private func status(_ disk: DiskID) -> Result<DiskStatus, ServerFault> {
        guard let export = state.withLock({ $0.disks[disk] }) else {
            return .failure(.unknownDisk)
        }
        let tracking = trackingStatus(disk)
        return .success(
            DiskStatus(
                sizeBytes: export.source.sizeBytes,
                clientCount: export.clientCount.load(ordering: .relaxed),
                dirtyBytes: tracking?.dirtyBytes ?? 0, tracking: tracking))
    }

    private func addLiveListener(
        _ endpoint: ListenEndpoint, _ security: ListenerSecurity
    ) -> Result<ListenEndpoint, ServerFault> {
        switch open(endpoint, scope: live, security: security) {
        case .failure(let fault): return .failure(fault)
        case .success(let opened): return .success(serveLive(opened))
        }
    }

    private func serveLive(_ opened: OpenedListener) -> ListenEndpoint {
        state.withLock { $0.liveListeners.append(opened.listener) }
        shared.acceptor(for: .guests).post(.addListener(opened.listener))
        return opened.endpoint
    }

    private func adopt(
        _ descriptor: Int32, _ security: ListenerSecurity
    ) -> Result<ListenEndpoint, ServerFault> {
        guard security == .plaintext || shared.security.offersTLS else {
            return .failure(.tlsNotConfigured)
        }
        do throws(SystemFault) {
            let listener = try Listener.adopting(descriptor)
            let endpoint = try ListenEndpoint(boundTo: descriptor, port: listener.port)
            return .success(serveLive(wrap(listener, live, security, endpoint)))
        } catch {
            return .failure(
                .cannotListen(
                    endpoint: "descriptor \(descriptor)", errorText: error.errorText))
        }
    }

    /// Disconnects everyone who uses an export and waits, as long as limits allow, until they are
    /// gone.
    @discardableResult
    func closeConnections(of export: ExportID, gracefully: Bool) -> Bool {
        let closed = Latch(count: shared.mailboxes.count)
        for mailbox in shared.mailboxes {
            mailbox.post(.closeConnections(export, gracefully: gracefully, closed))
        }
        return closed.wait(milliseconds: Limits.drainMilliseconds)
    }

    // MARK: Listeners

    struct OpenedListener {
        let listener: RingListener
        let endpoint: ListenEndpoint
    }

    /// Binds a listener; it accepts only once a ring has it.
    func open(
        _ endpoint: ListenEndpoint, scope: ExportScope, security: ListenerSecurity
    ) -> Result<OpenedListener, ServerFault> {
        guard security == .plaintext || shared.security.offersTLS else {
            return .failure(.tlsNotConfigured)
        }
        return bind(endpoint) { listener, bound in wrap(listener, scope, security, bound) }
    }

    private func bind(
        _ endpoint: ListenEndpoint,
        _ wrap: (consuming Listener, ListenEndpoint) -> OpenedListener
    ) -> Result<OpenedListener, ServerFault> {
        do throws(SystemFault) {
            switch endpoint {
            case .unix(let path, let mode):
                let access = shared.configuration.socketAccess
                let listener = try Listener.unix(
                    path: path, mode: access.mode ?? mode, group: access.group)
                return .success(wrap(listener, endpoint))
            case .tcp(let host, let port?):
                let listener = try Listener.tcp(host: host, port: port)
                let bound = ListenEndpoint.tcp(host: host, port: listener.port)
                return .success(wrap(listener, bound))
            case .tcp(let host, nil):
                return try openAutomatic(host, wrap)
            }
        } catch {
            return .failure(
                .cannotListen(endpoint: endpoint.text, errorText: error.errorText))
        }
    }

    private func openAutomatic(
        _ host: String, _ wrap: (consuming Listener, ListenEndpoint) -> OpenedListener
    ) throws(SystemFault) -> Result<OpenedListener, ServerFault> {
        for port in Limits.automaticPorts {
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

    private func wrap(
        _ listener: consuming Listener, _ scope: ExportScope, _ security: ListenerSecurity,
        _ endpoint: ListenEndpoint
    ) -> OpenedListener {
        let number = state.withLock { state in
            state.lastListener += 1
            return state.lastListener
        }
        return OpenedListener(
            listener: RingListener(
                number: number, scope: scope, security: security, listener: listener),
            endpoint: endpoint)
    }

    /// Stops accepting and removes a unix socket's file.
    func close(_ listener: RingListener) {
        let removed = Latch(count: 1)
        shared.acceptor(for: listener.scope.duty)
            .post(.removeListener(number: listener.number, removed))
        _ = removed.wait(milliseconds: -1)
        listener.close()
    }

    // MARK: Faults

    static func fault(_ path: String, _ fault: SourceFault) -> ServerFault {
        if case .inUse(let detail) = fault { return .sourceLocked(path: path, detail: detail) }
        return .sourceUnusable(path: path, detail: detail(of: fault))
    }

    static func detail(of fault: SourceFault) -> String {
        switch fault {
        case .system(let fault): "\(fault.call): \(fault.errorText)"
        case .inUse(let detail): detail
        case .alignmentTooLarge(let alignment):
            "its blocks of \(alignment) bytes are larger than 4096: use a cache mode other than none"
        case .empty: "the device has no bytes: it may be without a medium"
        case .tooLarge(let size):
            "its size of \(size) bytes is larger than \(RawSource.sizeBytesMax) bytes, the most that is"
                + " served"
        case .wrongType(let expected, let found):
            "it is \(name(found)), expected \(name(expected))"
        case .sizeNotAligned(let size, let alignment):
            "the device's size of \(size) bytes is not a multiple of \(alignment), which cache='none'"
                + " needs: use another cache mode"
        }
    }

    private static func name(_ type: FileType) -> String {
        switch type {
        case .regular: "a regular file"
        case .blockDevice: "a block device"
        case .directory: "a directory"
        case .other: "neither a file nor a block device"
        }
    }
}

extension ListenEndpoint {
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

    /// The endpoint in an error text.
    var text: String {
        switch self {
        case .unix(let path, _): path
        case .tcp(let host, let port): port.map { "\(host):\($0)" } ?? host
        }
    }
}
