import IORing
import NBDProtocol
import ServerInterface
import Synchronization
import SystemLayer
import Tables

/// Connections come; when there is no place left, those that have not chosen an export make way.
extension RingLoop where IO: ~Copyable {
    mutating func armAccept(_ listener: RingListener) {
        io.prepareEvent(
            .acceptable(listener.handle), tag: Operation.accept(listener: listener.number).tag)
    }

    mutating func acceptAll(from number: UInt64, result: Int32) {
        guard let listener = listeners.first(where: { $0.number == number }) else { return }
        guard result >= 0 else {
            // Whatever kept the kernel from watching the socket, the next tick asks again.
            return pausedListeners.append(listener)
        }
        if let export = listener.guestOf { return acceptFrontEnd(listener, export) }
        do throws(SystemFault) {
            // Somebody waits, as the poll has said: only then is anybody sent away.
            if case .afterEviction = shared.counts.room(for: listener.scope) {
                return makeRoom(for: listener)
            }
            // A peer that connects as fast as it can gets no more of a turn than others.
            for _ in 0..<Limits.acceptsPerTurn {
                if case .afterEviction = shared.counts.room(for: listener.scope) { break }
                guard let socket = try io.accept(listener.handle) else { break }
                place(socket, listener)
            }
            armAccept(listener)
        } catch {
            // Out of descriptors or memory: clients wait in the backlog.
            pausedListeners.append(listener)
        }
    }

    private mutating func place(_ socket: SocketHandle, _ listener: RingListener) {
        let peer = listener.isUnix ? nil : io.address(of: socket)
        guard case .free = shared.counts.room(for: listener.scope),
            shared.counts.admit(listener.scope, peer)
        else {
            shared.counts.refused.add(1, ordering: .relaxed)
            return io.close(socket)
        }
        let local = io.welcome(socket, isUnix: listener.isUnix)
        let seed = ConnectionSeed(
            socket: socket, scope: listener.scope, isUnix: listener.isUnix, peer: peer,
            security: ConnectionSecurity(
                mode: listener.security, localPeer: local,
                rights: shared.security.rights(tls: nil, local: local)),
            negotiated: nil, input: [], output: Handshake.greeting)
        let ring = shared.pickRing(for: listener.scope.duty)
        if ring == index { adopt(seed) } else { shared.mailboxes[ring].post(.adopt(seed)) }
    }

    mutating func removeListener(_ number: UInt64, _ ticket: Ticket) {
        if let position = listeners.firstIndex(where: { $0.number == number }) {
            listeners.remove(at: position)
            pausedListeners.removeAll { $0.number == number }
            io.prepareCancel(
                Operation.accept(listener: number).tag, tag: Operation.ignored.tag)
            io.submit(waiting: false)
        }
        ticket.answer()
    }

    // MARK: Making room

    /// Accepts again where that was given up.
    mutating func resumeAccepting() {
        guard !pausedListeners.isEmpty else { return }
        for listener in pausedListeners { armAccept(listener) }
        pausedListeners.removeAll()
    }

    /// Ends a handshake and goes on accepting when it is gone, or when one is old enough.
    ///
    /// Honest clients choose an export within milliseconds, so what makes way is a peer that
    /// stalls.
    private mutating func makeRoom(for listener: RingListener) {
        pausedListeners.append(listener)
        shared.acceptWaits.store(true, ordering: .releasing)
        let isJobFull = shared.counts.current < shared.configuration.maxConnections
        let scope = isJobFull ? listener.scope : nil
        if evictHandshake(of: scope) { return }
        for other in shared.mailboxes.indices where other != index {
            shared.mailboxes[other].post(.evictHandshake(scope))
        }
    }

    @discardableResult
    mutating func evictHandshake(of scope: ExportScope?) -> Bool {
        var eviction = Eviction<ConnectionIndex, HandshakePeer>()
        for slot in connections.indices
        where connections.contains(slot) && connections[slot].isInHandshakeCount
            && connections[slot].phase.isBeforeTransmission
            && (scope == nil || connections[slot].scope === scope)
        {
            eviction.add(
                slot,
                of: HandshakePeer(
                    local: connections[slot].localPeer, address: connections[slot].peer),
                quietSince: connections[slot].lastProgress, mayGo: isOldEnough(slot))
        }
        guard let chosen = eviction.choice else { return false }
        close(chosen)
        return true
    }

    private mutating func isOldEnough(_ slot: ConnectionIndex) -> Bool {
        let age =
            connections[slot].isUnix
            ? Limits.unixEvictionAgeNanoseconds : Limits.tcpEvictionAgeNanoseconds
        return now > connections[slot].begunAt + age
    }

    /// The connection has chosen an export: nobody takes its place any more.
    mutating func leaveHandshake(_ slot: ConnectionIndex) {
        guard connections[slot].isInHandshakeCount else { return }
        connections[slot].isInHandshakeCount = false
        shared.counts.leaveHandshake(connections[slot].scope)
    }
}

/// Who is in a handshake: a process over a unix socket, an address over TCP.
private struct HandshakePeer: Hashable {
    let local: LocalPeer?
    let address: PeerAddress?
}
