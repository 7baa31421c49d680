import Synchronization

/// What a listening socket is for, and where it listens: by this the next server finds its own.
package struct SocketPlace: Sendable, Hashable, Codable {
    package enum Role: String, Sendable, Codable {
        /// Live exports and jobs.
        case nbd
        case control
        case libvirt
        /// Where the next server asks for the sockets.
        case handover
        /// A socket of the service manager's.
        case passed
        /// A vhost-user back end's.
        case vhost
        /// The port for watching.
        case monitor
    }

    package var role: Role
    /// A unix socket's absolute path, or HOST:PORT as it was asked for.
    package var address: String

    package init(_ role: Role, _ address: String) {
        self.role = role
        self.address = address
    }

    /// The place of a listener of NBD; nil while its port is not known.
    package init?(_ endpoint: ListenEndpoint) {
        switch endpoint {
        case .unix(let path, _): self.init(.nbd, path)
        case .tcp(let host, let port?): self.init(.nbd, "\(host):\(port)")
        case .tcp(_, nil): return nil
        }
    }

    /// The path of a unix socket.
    package var path: String? { address.hasPrefix("/") ? address : nil }
}

/// The listening sockets of a server, and those that it was given to begin with.
///
/// **Whoever opens a listener looks here first** (`take`), and binds only what is not there; it
/// says so when it has one (`added`) and before it closes it (`removed`). That is all it takes for
/// a listener to outlive its server: the next one gets everything that is in here. Descriptors that
/// are taken belong to the taker; those that are added stay their owner's.
package final class SocketKeep: Sendable {
    /// A socket and its place.
    package struct Socket: Sendable, Hashable {
        package let place: SocketPlace
        package let descriptor: Int32

        package init(place: SocketPlace, descriptor: Int32) {
            self.place = place
            self.descriptor = descriptor
        }
    }

    /// A socket has come into use, or is about to be closed.
    package enum Change: Sendable {
        case added(Socket)
        case removed(SocketPlace)
    }

    private struct State {
        var found: [SocketPlace: Int32] = [:]
        var used: [SocketPlace: Int32] = [:]
        var observer: (@Sendable (Change) -> Void)?
    }

    private let state = Mutex(State())

    package init() {}

    /// Told of every change from now on, in the order in which they are made, and of what is in use
    /// already.
    package func observe(_ observer: @escaping @Sendable (Change) -> Void) {
        state.withLock { state in
            state.observer = observer
            for (place, descriptor) in state.used {
                observer(.added(Socket(place: place, descriptor: descriptor)))
            }
        }
    }

    // MARK: Sockets of an earlier server

    /// Keeps sockets for those who open listeners; returns what has a place already, which is the
    /// caller's again.
    package func offer(_ sockets: [Socket]) -> [Int32] {
        state.withLock { state in
            var left: [Int32] = []
            for socket in sockets {
                if state.found[socket.place] != nil || state.used[socket.place] != nil {
                    left.append(socket.descriptor)
                } else {
                    state.found[socket.place] = socket.descriptor
                }
            }
            return left
        }
    }

    /// What nobody has taken yet; it stays here.
    package var waiting: [Socket] {
        state.withLock { state in
            state.found.map { Socket(place: $0.key, descriptor: $0.value) }
        }
    }

    /// Whether a socket of this role waits.
    package func hasWaiting(_ role: SocketPlace.Role) -> Bool {
        state.withLock { $0.found.keys.contains { $0.role == role } }
    }

    /// The socket that an earlier server had at a place; it is the caller's from now on.
    package func take(_ place: SocketPlace) -> Int32? {
        state.withLock { $0.found.removeValue(forKey: place) }
    }

    /// The same for all of a role.
    package func takeAll(_ role: SocketPlace.Role) -> [Socket] {
        state.withLock { state in
            let sockets = state.found.filter { $0.key.role == role }
            for place in sockets.keys { state.found[place] = nil }
            return sockets.map { Socket(place: $0.key, descriptor: $0.value) }
                .sorted { $0.place.address < $1.place.address }
        }
    }

    /// What nobody has taken, but for places where somebody is still to listen: it is the caller's
    /// from now on.
    package func takeRest(but awaited: Set<SocketPlace> = []) -> [Socket] {
        state.withLock { state in
            let rest = state.found.filter { !awaited.contains($0.key) }
            for place in rest.keys { state.found[place] = nil }
            return rest.map { Socket(place: $0.key, descriptor: $0.value) }
        }
    }

    // MARK: Sockets in use

    /// A listener is there.
    package func added(_ place: SocketPlace, _ descriptor: Int32) {
        state.withLock { state in
            state.used[place] = descriptor
            state.observer?(.added(Socket(place: place, descriptor: descriptor)))
        }
    }

    /// A listener is about to be closed.
    package func removed(_ place: SocketPlace) {
        state.withLock { state in
            guard state.used.removeValue(forKey: place) != nil else { return }
            state.observer?(.removed(place))
        }
    }

    /// What is in use now; the descriptors are valid as long as nothing is removed.
    package var inUse: [Socket] {
        state.withLock { state in
            state.used.map { Socket(place: $0.key, descriptor: $0.value) }
                .sorted {
                    ($0.place.role.rawValue, $0.place.address) < (
                        $1.place.role.rawValue, $1.place.address
                    )
                }
        }
    }
}
