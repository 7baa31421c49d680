import ServerInterface
import Synchronization
import SystemLayer

/// How many connections there are, of the whole server, of one job and of one peer.
///
/// A job's connections are added by one ring, those of the server by two; any ring takes away.
/// Touched when a connection comes, leaves its handshake, or goes.
final class ConnectionCounts: Sendable {
    /// What the next connection of a listener may do.
    enum Room {
        case free
        /// The server or the job is full; a peer that has not chosen an export makes way.
        case afterEviction
        /// Full of peers at work.
        case none
    }

    private let limits: ServerConfiguration
    private let total = Atomic<Int>(0)
    private let handshakes = Atomic<Int>(0)
    /// Connections that were closed at once, because a limit was reached.
    let refused = Atomic<UInt64>(0)
    private let peers = Mutex<[PeerAddress: Int]>([:])

    init(_ limits: ServerConfiguration) { self.limits = limits }

    /// Connections of all listeners together.
    var current: Int { total.load(ordering: .relaxed) }

    /// Accepting rings only; the other one may take what is free.
    func room(for scope: ExportScope) -> Room {
        if scope.jobID != nil, scope.connections.load(ordering: .relaxed) >= limits.maxPerJob {
            return scope.handshakes.load(ordering: .relaxed) > 0 ? .afterEviction : .none
        }
        guard current >= limits.maxConnections else { return .free }
        return handshakes.load(ordering: .relaxed) > 0 ? .afterEviction : .none
    }

    /// Accepting rings only: counts a new connection in; false when its peer has enough of them, or
    /// the other ring was faster.
    func admit(_ scope: ExportScope, _ peer: PeerAddress?) -> Bool {
        if total.add(1, ordering: .relaxed).newValue > limits.maxConnections {
            total.subtract(1, ordering: .relaxed)
            return false
        }
        if let peer {
            let fits = peers.withLock { peers in
                let count = peers[peer, default: 0]
                if count >= limits.maxPerPeer { return false }
                peers[peer] = count + 1
                return true
            }
            if !fits {
                total.subtract(1, ordering: .relaxed)
                return false
            }
        }
        handshakes.add(1, ordering: .relaxed)
        scope.connections.add(1, ordering: .relaxed)
        scope.handshakes.add(1, ordering: .relaxed)
        return true
    }

    /// The connection has chosen an export.
    func leaveHandshake(_ scope: ExportScope) {
        handshakes.subtract(1, ordering: .relaxed)
        scope.handshakes.subtract(1, ordering: .relaxed)
    }

    func drop(_ scope: ExportScope, _ peer: PeerAddress?, inHandshake: Bool) {
        if inHandshake { leaveHandshake(scope) }
        scope.connections.subtract(1, ordering: .relaxed)
        total.subtract(1, ordering: .relaxed)
        guard let peer else { return }
        peers.withLock { peers in
            let count = peers[peer, default: 1] - 1
            peers[peer] = count > 0 ? count : nil
        }
    }
}
