import LibvirtProtocol
import Synchronization

/// One connection of the libvirt door, as its handlers and the events see it.
final class LibvirtSession: Sendable {
    /// An event that the client has asked for.
    struct Registration: Sendable, Hashable {
        var number: Int32
        var event: Int32
        /// Only of this domain; nil: of all.
        var uuid: String?
        /// The client knows no callbacks: at most one registration of each event, and other
        /// messages.
        var isLegacy: Bool
    }

    /// What the client is, as the kernel knows it.
    let user: UInt32
    /// Its process; 0 when the kernel does not tell.
    let process: Int32
    /// Sends a packet that no call waits for; one that finds too much unsent ends the connection.
    let sendEvent: @Sendable (Packet) -> Void
    /// Sends a packet of libvirtd's and returns when it has left.
    let deliver: @Sendable (Packet) async -> Void
    /// Closes the connection when what is unsent has gone out.
    let hangUp: @Sendable () -> Void

    private struct State {
        var registrations: [Registration] = []
        var nextNumber: Int32 = 0
        var uri = "nbdpull:///system"
        var isReadOnly = false
        var isClosed = false
        var upstream: UpstreamConnection?
        /// The events before the next one are on their way.
        var telling: Task<Void, Never>?
        var untold = 0
        /// Jobs that were begun here, oldest first.
        var begunJobs: [String] = []
        /// Uuids of the domains for which a backup was asked here, whether or not it began.
        var backedUp: Set<String> = []
    }

    private let state = Mutex(State())

    init(
        user: UInt32, process: Int32 = 0, sendEvent: @escaping @Sendable (Packet) -> Void,
        deliver: @escaping @Sendable (Packet) async -> Void = { _ in },
        hangUp: @escaping @Sendable () -> Void = {}
    ) {
        self.user = user
        self.process = process
        self.sendEvent = sendEvent
        self.deliver = deliver
        self.hangUp = hangUp
    }

    /// The client's connection to the libvirtd behind the door, once it is opened.
    var upstream: UpstreamConnection? { state.withLock { $0.upstream } }

    /// Takes up that connection; false when there is one, or the client has gone.
    func attach(_ connection: UpstreamConnection) -> Bool {
        state.withLock { state in
            guard state.upstream == nil, !state.isClosed else { return false }
            state.upstream = connection
            return true
        }
    }

    /// The URI by which the client has opened the connection.
    var uri: String {
        get { state.withLock { $0.uri } }
        set { state.withLock { $0.uri = newValue } }
    }

    /// Whether the client may change nothing.
    var isReadOnly: Bool {
        get { state.withLock { $0.isReadOnly } }
        set { state.withLock { $0.isReadOnly = newValue } }
    }

    /// Throws on a read-only connection, where nobody is told secrets.
    func refuseSecrets(_ function: String) throws {
        guard isReadOnly else { return }
        throw WireError(
            code: WireErrorCode.operationDenied, domain: WireErrorDomain.domain,
            prefix: "operation forbidden: ", detail: "\(function) with secure flag")
    }

    /// What the client has asked for.
    var registrations: [Registration] { state.withLock { $0.registrations } }

    /// Adds a registration and returns its number; nil when there are too many.
    ///
    /// `number` is the one it must have, when that is somebody else's to say.
    func register(
        event: Int32, uuid: String?, isLegacy: Bool, number given: Int32? = nil
    ) -> Int32? {
        state.withLock { state in
            guard !state.isClosed, state.registrations.count < LibvirtLimits.registrationsMax else {
                return nil
            }
            let number = given ?? state.nextNumber
            state.nextNumber = state.nextNumber &+ 1 & Int32.max
            state.registrations.append(
                Registration(number: number, event: event, uuid: uuid, isLegacy: isLegacy))
            return number
        }
    }

    /// Whether one more registration would be taken.
    var hasRoomForRegistrations: Bool {
        state.withLock { $0.registrations.count < LibvirtLimits.registrationsMax }
    }

    /// Removes the registrations that fit; false when there are none.
    func deregister(_ fits: (Registration) -> Bool) -> Bool {
        state.withLock { state in
            let before = state.registrations.count
            state.registrations.removeAll(where: fits)
            return state.registrations.count < before
        }
    }

    /// Jobs that were begun on this connection; some may have ended.
    var begunJobs: Set<String> { state.withLock { Set($0.begunJobs) } }

    /// Whether a backup of a domain was asked for on this connection.
    func hasBackedUp(_ uuid: String) -> Bool { state.withLock { $0.backedUp.contains(uuid) } }

    /// Remembers that a backup of a domain was asked for on this connection.
    func noteBackup(of uuid: String) { state.withLock { _ = $0.backedUp.insert(uuid) } }

    /// Remembers a job that was begun on this connection: calls that can name none mean it.
    ///
    /// Of very many the oldest are forgotten.
    func noteBegun(job: String) {
        state.withLock { state in
            state.begunJobs.append(job)
            state.begunJobs.removeFirst(max(state.begunJobs.count - JobManager.jobsMax, 0))
        }
    }

    /// Sends an event to each of these registrations.
    ///
    /// Where libvirtd runs the machines, a domain has the name and the number that it has there,
    /// and how a machine fares is libvirtd's to tell.
    func tell(_ event: LibvirtEvent, _ asked: [Registration]) {
        guard let upstream else { return send(event, asked) }
        let isTooMuch = state.withLock { state in
            guard state.untold < UpstreamLimits.untoldMax else { return true }
            state.untold += 1
            let before = state.telling
            state.telling = Task {
                await before?.value
                await self.tell(event, asked, upstream)
                self.state.withLock { $0.untold -= 1 }
            }
            return false
        }
        // A client that misses events must know: it does when its connection ends.
        if isTooMuch { hangUp() }
    }

    private func tell(
        _ event: LibvirtEvent, _ asked: [Registration], _ upstream: UpstreamConnection
    ) async {
        let uuid = LibvirtCalls.reply { $0.opaque(event.domain.uuid) }
        let reply = await upstream.reply(
            to: .domainLookupByUUID, uuid.bytes, seconds: UpstreamLimits.shortAnswerSeconds)
        guard case .success(let packet) = reply, packet.error == nil else {
            return send(event, asked)
        }
        var reader = XDRReader(packet.body)
        if case .lifecycle = event { return }
        guard let domain = try? reader.domain() else { return send(event, asked) }
        send(event.about(domain), asked)
    }

    private func send(_ event: LibvirtEvent, _ asked: [Registration]) {
        for registration in asked {
            let number = registration.isLegacy ? nil : registration.number
            if let packet = event.message(kind: registration.event, callback: number) {
                sendEvent(packet)
            }
        }
    }

    /// Nothing is sent any more.
    func close() {
        let upstream = state.withLock { state in
            state.isClosed = true
            state.registrations = []
            return state.upstream.take()
        }
        upstream?.close()
    }
}
