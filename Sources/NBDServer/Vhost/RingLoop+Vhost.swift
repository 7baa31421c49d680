import Disk
import IORing
import NBDProtocol
import ServerInterface
import SharedMemory
import Synchronization
import SystemLayer
import Tables
import VhostProtocol

/// Front-ends of vhost-user come and go: one at a time for each disk, on the disk's home ring.
extension RingLoop where IO: ~Copyable {
    // MARK: Coming

    /// A front-end waits, as the poll has said; it stays in the kernel's queue while another one is
    /// there.
    mutating func acceptFrontEnd(_ listener: RingListener, _ export: LiveExport) {
        guard !hasFrontEnd(listener.number) else { return }
        guard !export.closer.isFull else {
            if export.closer.saysFull() { reportLeftover(export) }
            pausedListeners.append(listener)
            return
        }
        do throws(SystemFault) {
            if case .free = shared.counts.room(for: listener.scope) {
                if let socket = try io.accept(listener.handle) {
                    adopt(socket, listener, export)
                }
                if !hasFrontEnd(listener.number) { armAccept(listener) }
            } else {
                pausedListeners.append(listener)
            }
        } catch {
            pausedListeners.append(listener)
        }
    }

    private mutating func reportLeftover(_ export: LiveExport) {
        shared.emit(
            .guestProblem(
                export: export.description.name,
                reason: "\(export.closer.waiting) descriptors that front-ends have sent cannot be"
                    + " closed: no front-end is let in before \(SlowCloser.waitingMax) are left"))
    }

    private mutating func hasFrontEnd(_ listener: UInt64) -> Bool {
        for slot in sharing {
            if let vhost = connections[slot].vhost, vhosts[vhost].listener == listener {
                return true
            }
        }
        return false
    }

    private mutating func adopt(
        _ socket: SocketHandle, _ listener: RingListener, _ export: LiveExport
    ) {
        guard stopTicket == nil, !isDeparting, !connections.isFull, !vhosts.isFull,
            !export.isLeaving, let disk = diskSlots[export.disk]
        else { return io.close(socket, by: export.closer) }
        let local = io.welcome(socket, isUnix: true)
        let permitted = PermittedExports(
            scope: listener.scope, rights: shared.security.rights(tls: nil, local: local))
        guard permitted.isPermitted(.live(export)), shared.counts.admit(listener.scope, nil) else {
            return io.close(socket, by: export.closer)
        }
        let seed = ConnectionSeed(
            socket: socket, scope: listener.scope, isUnix: true, peer: nil,
            security: ConnectionSecurity(
                mode: .plaintext, localPeer: local, rights: permitted.rights),
            negotiated: nil, input: [], output: [])
        // It has no buffer for input: messages are few and small.
        let slot = connections.insert(Connection(seed, input: 0, now: now))
        leaveHandshake(slot)
        connections[slot].enter(.sharing, until: nil)
        do throws(SystemFault) {
            connections[slot].vhost = vhosts.insert(
                try VhostSession(
                    export, listener: listener.number, slot: slot,
                    sizeBytes: disks[disk].sizeBytes))
        } catch {
            connections.remove(slot)
            io.close(socket, by: export.closer)
            return shared.drop(listener.scope, nil, inHandshake: false)
        }
        connections[slot].transmission.target = .live(export)
        connections[slot].transmission.path = ReadPath(
            source: FileHandle(export.source.raw), export: export.id.number,
            alignment: export.source.alignment,
            sourceNeverWaits: export.source.readsNeverWait, sizeBytes: export.source.sizeBytes)
        if !export.source.isReadOnly { connections[slot].transmission.disk = disk }
        export.clientCount.add(1, ordering: .relaxed)
        sharing.append(slot)
        shared.emit(.clientConnected(export: export.description.name, jobID: nil))
        markReady(slot)
    }

    /// Makes the front-end the one who writes the disk; false, and why in the log, while an NBD
    /// client may.
    mutating func claimDisk(_ slot: ConnectionIndex, _ vhost: VhostIndex) -> Bool {
        guard let disk = connections[slot].transmission.disk, disks[disk].guest != slot else {
            return true
        }
        for other in connections.indices
        where other != slot && connections.contains(other)
            && connections[other].transmission.disk == disk
        {
            refuse(
                slot, vhost,
                "an NBD client is connected that may write the disk: disconnect it first")
            return false
        }
        disks[disk].guest = slot
        disks[disk].export.isShared.store(true, ordering: .relaxed)
        return true
    }

    /// The disk has become larger: the guest sees it when it looks.
    mutating func resizeGuests(of disk: DiskIndex) {
        for slot in sharing where connections[slot].transmission.disk == disk {
            guard let vhost = connections[slot].vhost else { continue }
            vhosts[vhost].session.resized(sizeBytes: disks[disk].sizeBytes)
            vhosts[vhost].rules = vhosts[vhost].session.rules
            connections[slot].transmission.path?.sizeBytes = disks[disk].sizeBytes
        }
    }

    // MARK: Going

    /// Ends the session for what its front-end or guest has done; others notice nothing.
    mutating func refuse(_ slot: ConnectionIndex, _ vhost: VhostIndex, _ reason: String) {
        guard connections[slot].phase != .closing else { return }
        report(vhost, "\(reason); its connection is closed", isLast: true)
        close(slot)
    }

    /// Puts into the event log what is wrong with a session; a few lines of each.
    mutating func report(_ vhost: VhostIndex, _ text: String, isLast: Bool = false) {
        guard isLast || vhosts[vhost].reports < Limits.reportsPerGuest else { return }
        vhosts[vhost].reports += 1
        shared.emit(
            .guestProblem(export: vhosts[vhost].export.description.name, reason: text))
    }

    /// A closing front-end goes away when the kernel and all its requests are through with it.
    mutating func reap(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        if !vhosts[vhost].isEnding {
            vhosts[vhost].isEnding = true
            callOwed(vhost)
            cancelWaits(vhost)
        }
        guard !connections[slot].isReferenced, !vhosts[vhost].isReferenced else { return }
        sharing.removeAll { $0 == slot }
        uncalledAnswers = 0
        let (closer, unmapper) = (vhosts[vhost].export.closer, vhosts[vhost].export.unmapper)
        closeDescriptors(vhosts[vhost].allDescriptors, closer)
        if let disk = connections[slot].transmission.disk, disks[disk].guest == slot {
            disks[disk].guest = nil
            disks[disk].export.isShared.store(false, ordering: .relaxed)
        }
        let left = leaveExport(slot)
        let listener = vhosts[vhost].listener
        for queue in vhosts[vhost].queues.indices { endCall(vhost, queue) }
        unmapper.unmap(vhosts[vhost].takeMemory())
        vhosts.remove(vhost)
        let connection = connections.remove(slot)
        io.close(connection.socket, by: closer)
        shared.drop(connection.scope, nil, inHandshake: false)
        if let left { report(left) }
        if let next = listeners.first(where: { $0.number == listener }) { armAccept(next) }
        wakeStarved()
        reportDeparted()
    }

    private mutating func cancelWaits(_ vhost: VhostIndex) {
        for queue in vhosts[vhost].queues.indices where vhosts[vhost].queues[queue].isArmed {
            io.prepareCancel(
                Operation.kick(vhost, queue: queue).tag, tag: Operation.ignored.tag)
        }
    }

    /// The queue's guest is called no more.
    mutating func endCall(_ vhost: VhostIndex, _ queue: Int) {
        guard let call = vhosts[vhost].queues[queue].call else { return }
        vhosts[vhost].queues[queue].call = nil
        io.close(call)
    }

    /// Closes descriptors that front-ends have sent.
    mutating func closeDescriptors(_ descriptors: [Int32], _ closer: SlowCloser) {
        let open = descriptors.filter { $0 >= 0 }
        guard !open.isEmpty else { return }
        // What was prepared names them by number: the kernel takes its own references first.
        io.submit(waiting: false)
        io.close(open, by: closer)
    }
}
