import Disk
import IORing
import NBDProtocol
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Tables

/// Connections come, receive, and go.
extension RingLoop where IO: ~Copyable {
    // MARK: Adopting and handing over

    mutating func adopt(_ seed: ConnectionSeed) {
        guard stopTicket == nil, !isDeparting, !connections.isFull,
            let input = arena.allocate(pages: Limits.inputBytes / BufferArena.pageBytes)
        else {
            io.close(seed.socket)
            shared.drop(seed.scope, seed.peer, inHandshake: seed.negotiated == nil)
            return
        }
        let slot = connections.insert(Connection(seed, input: input, now: now))
        store(seed.input, at: input)
        connections[slot].inbox.append(seed.input.count)
        guard adoptSession(slot, seed.security) else { return close(slot) }
        send(seed.output, to: slot)
        if let negotiated = seed.negotiated { enterTransmission(slot, negotiated) }
        if connections.contains(slot) { markReady(slot) }
    }

    mutating func store(_ bytes: [UInt8], at offset: Int) {
        var span = arena.mutableBytes(offset, count: bytes.count)
        for index in bytes.indices {
            span.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
        }
    }

    /// The handshake is over: joins the connection with its export, on the ring where that belongs.
    mutating func enterTransmission(_ slot: ConnectionIndex, _ negotiated: Negotiated) {
        guard let target = connections[slot].scope.target(named: negotiated.export.name),
            target.fits(negotiated.export)
        else { return close(slot) }
        leaveHandshake(slot)
        let isReadOnly = negotiated.export.flags.contains(.readOnly)
        if case .live(let export) = target, !isReadOnly, export.homeRing != index {
            // A reply on its way keeps the connection here until the socket has taken it.
            flush(slot)
            if connections[slot].phase == .closing { return }
            if connections[slot].outbox.waitsForWritable {
                connections[slot].negotiation.next = .move(negotiated)
                return
            }
            return handOver(slot, negotiated, to: export.homeRing)
        }
        if case .live(let export) = target, !isReadOnly {
            guard let disk = diskSlots[export.disk] else { return close(slot) }
            if disks[disk].guest != nil { return refuseWriter(slot, export) }
            connections[slot].transmission.disk = disk
        }
        connections[slot].enter(.transmission, until: nil)
        connections[slot].transmission.target = target
        connections[slot].transmission.reader = RequestReader(negotiated)
        connections[slot].transmission.replies = ReplyEncoder(negotiated.replyMode)
        connections[slot].transmission.contexts = negotiated.contexts
        switch target {
        case .live(let export):
            connections[slot].transmission.path = ReadPath(
                source: FileHandle(export.source.raw), export: export.id.number,
                alignment: export.source.alignment,
                sourceNeverWaits: export.source.readsNeverWait, sizeBytes: export.source.sizeBytes)
            export.clientCount.add(1, ordering: .relaxed)
        case .backup(let export):
            connections[slot].transmission.path = ReadPath(
                source: FileHandle(export.source.raw), export: export.id.number,
                alignment: export.source.alignment,
                sourceNeverWaits: export.source.readsNeverWait, sizeBytes: export.source.sizeBytes,
                dropsBehind: !export.source.isDirect && !export.source.readsNeverWait,
                preserved: PreservedPath(
                    ledger: export.ledger.view, scratch: FileHandle(export.scratch.raw),
                    neverWaits: export.scratch.readsNeverWait,
                    witness: export.scratch.witness(
                        of: index - shared.layout.rings(for: .backups).lowerBound
                    ).map(FileHandle.init)),
                readCells: export.readCells)
            connections[slot].transmission.coldWindows = ColdWindows(
                sizeBytes: export.source.sizeBytes)
            export.clientCount.add(1, ordering: .relaxed)
        }
        switch target {
        case .live(let export): setUpstream(slot, export.source)
        case .backup(let export): setUpstream(slot, export.source)
        }
        chooseStrategy(slot)
        shared.emit(
            .clientConnected(
                export: negotiated.export.name, jobID: connections[slot].scope.jobID))
    }

    private mutating func setUpstream(_ slot: ConnectionIndex, _ source: RawSource) {
        connections[slot].transmission.path?.asksUpstream = source.remote?.tellsAllocation ?? false
    }

    /// A client that was told of a disk that it may write, while a guest got it by vhost-user.
    private mutating func refuseWriter(_ slot: ConnectionIndex, _ export: LiveExport) {
        shared.emit(
            .clientRefused(
                jobID: nil,
                reason: "'\(export.description.name)' is written by its vhost-user guest: it is"
                    + " read-only over NBD until that has gone"))
        close(slot)
    }

    private mutating func handOver(_ slot: ConnectionIndex, _ negotiated: Negotiated, to home: Int)
    {
        precondition(!connections[slot].isReferenced, "nothing of a handshake is in flight")
        precondition(connections[slot].outbox.replies.isEmpty, "every reply has been sent")
        let first = connections[slot].inbox.first
        var input: [UInt8] = []
        append(first..<(first + connections[slot].inbox.count), to: &input)
        let security = takeChannel(slot)
        arena.free(
            connections[slot].inbox.buffer, pages: Limits.inputBytes / BufferArena.pageBytes)
        let connection = connections.remove(slot)
        defer { reportDeparted() }
        let scope = connection.scope
        let isUnix = connection.isUnix
        let peer = connection.peer
        shared.mailboxes[home].post(
            .adopt(
                ConnectionSeed(
                    socket: connection.socket, scope: scope, isUnix: isUnix,
                    peer: peer, security: security, negotiated: negotiated, input: input,
                    output: [])))
    }

    mutating func append(_ range: Range<Int>, to bytes: inout [UInt8]) {
        let span = arena.bytes(range.lowerBound, count: range.count)
        for index in span.indices { bytes.append(span[index]) }
    }

    // MARK: Receiving

    /// Asks for more input, if there is room and nothing is being received.
    mutating func armReceive(_ slot: ConnectionIndex) {
        guard connections[slot].inbox.receiving == .nothing else { return }
        let inbox = connections[slot].inbox
        if inbox.start > 0 {
            if inbox.count > 0 {
                arena.copy(from: inbox.first, to: inbox.buffer, count: inbox.count)
            }
            connections[slot].inbox.moveToStart()
        }
        precondition(inbox.count < Limits.inputBytes, "a message always fits the input buffer")
        if connections[slot].isSecured { return receiveSealed(slot) }
        connections[slot].inbox.receiving = .input
        io.prepareReceive(
            connections[slot].socket, into: arena, at: connections[slot].inbox.free,
            count: connections[slot].inbox.freeBytes, whole: false,
            tag: Operation.receive(slot).tag)
    }

    mutating func received(_ slot: ConnectionIndex, result: Int32) {
        let what = connections[slot].inbox.receiving
        connections[slot].inbox.receiving = .nothing
        if connections[slot].isSecured { return sealedReceived(slot, what, result: result) }
        if case .payload(let piece) = what {
            payloadReceived(slot, piece, result: result)
        } else if result > 0 {
            connections[slot].inbox.append(Int(result))
            connections[slot].lastProgress = now
        } else if result != -Errno.interrupted {
            streamEnded(slot)
        }
        if connections.contains(slot) { markReady(slot) }
    }

    /// Nothing more comes; what was begun is still finished where the connection drains.
    mutating func streamEnded(_ slot: ConnectionIndex) {
        connections[slot].inbox.receiving = .ended
        if connections[slot].phase != .draining { close(slot) }
    }

    // MARK: Closing

    /// Ends a connection at once; its slot is freed when the kernel and its requests are through
    /// with it.
    mutating func close(_ slot: ConnectionIndex) {
        guard connections[slot].phase != .closing else { return }
        bidFarewell(slot)
        connections[slot].enter(.closing, until: nil)
        io.shutdown(connections[slot].socket)
        abandonCurrent(slot)
        markReady(slot)
    }

    /// Reads no further requests, finishes those in flight, sends what is to be sent, then closes.
    mutating func drain(_ slot: ConnectionIndex) {
        switch connections[slot].phase {
        case .handshake, .securing, .transmission, .sharing: break
        case .draining, .closing: return
        }
        connections[slot].enter(.draining, until: now + Limits.farewellNanoseconds)
        markReady(slot)
    }

    /// A closing connection that nothing refers to any more goes away.
    mutating func reap(_ slot: ConnectionIndex) {
        guard connections[slot].phase == .closing, !connections[slot].isReferenced else { return }
        while !connections[slot].outbox.replies.isEmpty {
            free(connections[slot].outbox.replies.removeFirst())
        }
        let left = leaveExport(slot)
        arena.free(connections[slot].inbox.buffer, pages: Limits.inputBytes / BufferArena.pageBytes)
        _ = takeChannel(slot)
        let connection = connections.remove(slot)
        io.close(connection.socket)
        shared.drop(
            connection.scope, connection.peer, inHandshake: connection.isInHandshakeCount)
        if let left { report(left) }
        wakeStarved()
        reportDeparted()
    }

    /// Detaches the connection from its export; nil: it had none.
    mutating func leaveExport(_ slot: ConnectionIndex) -> Departure? {
        guard let target = connections[slot].transmission.target else { return nil }
        reportBytesRead(slot)
        connections[slot].transmission.target = nil
        connections[slot].transmission.path = nil
        switch target {
        case .live(let export):
            export.clientCount.subtract(1, ordering: .relaxed)
        case .backup(let export):
            export.clientCount.subtract(1, ordering: .relaxed)
        }
        return Departure(
            export: target.id, name: target.description.name,
            jobID: connections[slot].scope.jobID)
    }

    mutating func report(_ departure: Departure) {
        shared.emit(.clientDisconnected(export: departure.name, jobID: departure.jobID))
        settleClosers(departure.export)
    }

    mutating func closeConnections(of export: ExportID, gracefully: Bool, _ ticket: Ticket) {
        closers.append(Closer(export: export, ticket: ticket))
        for slot in connections.indices
        where connections.contains(slot) && connections[slot].transmission.target?.id == export {
            if gracefully { drain(slot) } else { close(slot) }
        }
        settleClosers(export)
    }

    private mutating func settleClosers(_ export: ExportID) {
        guard closers.contains(where: { $0.export == export }) else { return }
        for slot in connections.indices
        where connections.contains(slot) && connections[slot].transmission.target?.id == export {
            return
        }
        for closer in closers where closer.export == export { closer.ticket.answer() }
        closers.removeAll { $0.export == export }
    }
}

/// A connection has left its export.
struct Departure {
    let export: ExportID
    let name: String
    let jobID: String?
}
