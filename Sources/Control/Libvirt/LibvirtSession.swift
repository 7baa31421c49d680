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
        /// The client knows no callbacks: at most one registration of each event, and other messages.
        var isLegacy: Bool
    }

    /// What the client is, as the kernel knows it.
    let user: UInt32
    /// Sends a packet that no call waits for; one that finds too much unsent ends the connection.
    let sendEvent: @Sendable (Packet) -> Void

    private struct State {
        var registrations: [Registration] = []
        var nextNumber: Int32 = 0
        var uri = "nbdpull:///system"
        var isReadOnly = false
        var isClosed = false
    }

    private let state = Mutex(State())

    init(user: UInt32, sendEvent: @escaping @Sendable (Packet) -> Void) {
        self.user = user
        self.sendEvent = sendEvent
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
    func register(event: Int32, uuid: String?, isLegacy: Bool) -> Int32? {
        state.withLock { state in
            guard !state.isClosed, state.registrations.count < LibvirtLimits.registrationsMax else {
                return nil
            }
            let number = state.nextNumber
            state.nextNumber = state.nextNumber &+ 1 & Int32.max
            state.registrations.append(
                Registration(number: number, event: event, uuid: uuid, isLegacy: isLegacy))
            return number
        }
    }

    /// Removes the registrations that fit; false when there are none.
    func deregister(_ fits: (Registration) -> Bool) -> Bool {
        state.withLock { state in
            let before = state.registrations.count
            state.registrations.removeAll(where: fits)
            return state.registrations.count < before
        }
    }

    /// Nothing is sent any more.
    func close() {
        state.withLock { state in
            state.isClosed = true
            state.registrations = []
        }
    }
}
