import Core
import IORing
import NBDProtocol
import Synchronization
import SystemLayer
import Tables

/// A connection's turn: requests are parsed, begun and answered.
extension RingLoop where IO: ~Copyable {
    mutating func serve(_ slot: ConnectionIndex) {
        if let vhost = connections[slot].vhost { return serve(slot, vhost) }
        switch connections[slot].phase {
        case .handshake: negotiate(slot)
        case .securing: secure(slot)
        case .transmission: transmit(slot)
        case .draining: goOn(slot)
        case .closing: return reap(slot)
        case .sharing: preconditionFailure("front-ends have a turn of their own")
        }
        // The turn may have handed the connection to another ring.
        guard connections.contains(slot) else { return }
        let unsent = connections[slot].outbox.replies.unsentBytes
        flush(slot)
        if connections[slot].transmission.isBlocked,
            connections[slot].outbox.replies.unsentBytes < unsent
        {
            markReady(slot)
        }
        switch connections[slot].phase {
        case .closing: reap(slot)
        case .draining:
            if connections[slot].transmission.requestCount == 0,
                connections[slot].outbox.replies.isEmpty
            {
                sayGoodbye(slot)
                if !hasUnsent(slot) { close(slot) }
            }
        case .handshake, .securing, .transmission, .sharing: break
        }
    }

    mutating func negotiate(_ slot: ConnectionIndex) {
        trace.note(.handshake)
        switch connections[slot].negotiation.next {
        case .option: break
        case .tls: return startTLS(slot)
        case .move(let negotiated):
            connections[slot].negotiation.next = .option
            return enterTransmission(slot, negotiated)
        }
        while connections[slot].phase == .handshake {
            guard let step = advanceHandshake(slot) else { return parked.append(slot) }
            switch step {
            case .needBytes:
                return armReceive(slot)
            case .progressed(let consumed):
                connections[slot].inbox.consume(consumed)
            case .startTLS(let consumed):
                connections[slot].inbox.consume(consumed)
                return startTLS(slot)
            case .finished(let consumed, let negotiated):
                connections[slot].inbox.consume(consumed)
                enterTransmission(slot, negotiated)
                if connections.contains(slot), connections[slot].phase == .transmission {
                    transmit(slot)
                }
                return
            case .close:
                return drain(slot)
            }
            if connections[slot].outbox.replies.unsentBytes > Limits.unsentBytesPerConnection {
                flush(slot)
                if connections[slot].outbox.waitsForWritable { return }
            }
        }
    }

    /// Nil when the peer has asked for an export that is to come soon: then nothing has happened,
    /// and it is asked again when one has.
    private mutating func advanceHandshake(_ slot: ConnectionIndex) -> HandshakeStep? {
        let isStarting = connections[slot].scope.awaitsAny.load(ordering: .relaxed)
        let missed = isStarting ? MissedExport() : nil
        let exports = PermittedExports(
            scope: connections[slot].scope, rights: connections[slot].rights, missed: missed)
        var handshake = connections[slot].negotiation.handshake
        var reply: [UInt8] = []
        let step = handshake.advance(
            arena.bytes(connections[slot].inbox.first, count: connections[slot].inbox.count),
            directory: exports,
            reply: &reply)
        if let missed, missed.isMissed { return nil }
        connections[slot].negotiation.handshake = handshake
        if !reply.isEmpty { send(reply, to: slot) }
        return step
    }

    private mutating func transmit(_ slot: ConnectionIndex) {
        var turn = TurnBudget(
            steps: Limits.requestsPerTurn, bytes: connections[slot].transmission.unreportedBytes,
            bytesPerTurn: Limits.bytesPerTurn)
        connections[slot].transmission.isBlocked = false
        while connections[slot].phase == .transmission {
            guard turn.goesOn(bytes: connections[slot].transmission.unreportedBytes) else {
                return markReady(slot)
            }
            if let current = connections[slot].transmission.current {
                switch issue(slot, current) {
                case .issued: continue
                case .blocked:
                    connections[slot].transmission.isBlocked = true
                    return
                case .again: return markReady(slot)
                }
            }
            sendEarly(slot)
            switch permission(slot) {
            case .granted: break
            case .waitsForPeer:
                connections[slot].transmission.isBlocked = true
                return
            case .waitsForRoom:
                connections[slot].transmission.isBlocked = true
                return starved.append(slot)
            }
            switch nextRequest(slot) {
            case .needBytes: return armReceive(slot)
            case .badMagic: return close(slot)
            case .progressed(let consumed):
                connections[slot].inbox.consume(consumed)
            case .request(let verdict, let consumed):
                connections[slot].inbox.consume(consumed)
                begin(slot, verdict)
            }
        }
    }

    private mutating func nextRequest(_ slot: ConnectionIndex) -> RequestStep {
        guard var reader = connections[slot].transmission.reader else {
            preconditionFailure("transmission begins with a reader")
        }
        let step = reader.next(
            arena.bytes(connections[slot].inbox.first, count: connections[slot].inbox.count))
        connections[slot].transmission.reader = reader
        return step
    }

    /// A draining connection still finishes the request it had begun.
    private mutating func goOn(_ slot: ConnectionIndex) {
        while connections[slot].phase == .draining,
            let current = connections[slot].transmission.current
        {
            switch issue(slot, current) {
            case .issued: continue
            case .blocked:
                connections[slot].transmission.isBlocked = true
                return
            case .again: return markReady(slot)
            }
        }
    }

    private mutating func permission(_ slot: ConnectionIndex) -> ConnectionBudget.Permission {
        guard connections[slot].phase == .transmission else { return .waitsForPeer }
        let use = ConnectionBudget.Use(
            requests: connections[slot].transmission.requestCount,
            unsentBytes: connections[slot].outbox.replies.unsentBytes,
            replies: connections[slot].outbox.replies.count)
        // A request must find room, and one operation for it.
        let mayBegin = operationShares.allowBegin(pieces.count, own: use.requests)
        return budget.permission(use, isRingFull: requests.isFull || !mayBegin)
    }

    /// Sends replies before the turn is over when they are many.
    private mutating func sendEarly(_ slot: ConnectionIndex) {
        guard connections[slot].outbox.replies.unsentBytes >= Limits.pieceBytes,
            connections[slot].transmission.requestCount < Limits.requestsPerConnection
        else { return }
        flush(slot)
    }

    private mutating func begin(_ slot: ConnectionIndex, _ verdict: RequestVerdict) {
        switch verdict {
        case .accept(let request): begin(slot, request)
        case .acceptStatus(let request, let asked):
            note(.request, request, slot)
            connections[slot].transmission.current = open(slot, request)
            startStatus(slot, request, asked)
        case .refuse(let refusal):
            replyError(slot, refusal.echo, refusal.error, refusal.text)
        case .disconnect(let refusal):
            replyError(slot, refusal.echo, refusal.error, refusal.text)
            drain(slot)
        case .finish: drain(slot)
        }
    }

    private mutating func begin(_ slot: ConnectionIndex, _ request: ValidRequest) {
        count(request, of: slot)
        note(.request, request, slot)
        switch request.command {
        case .read:
            if request.length == 0 { return replySuccess(slot, request.echo, isRead: true) }
            if readInline(slot, request) { return }
            connections[slot].transmission.current = open(slot, request)
        case .write, .trim, .writeZeroes:
            if request.length == 0 { return replySuccess(slot, request.echo) }
            let opened = open(slot, request)
            if request.command == .write {
                connections[slot].transmission.current = opened
            } else if connections[slot].transmission.disk == nil {
                startRelease(opened)
            } else {
                startZeroing(opened)
            }
        case .flush:
            if connections[slot].transmission.disk == nil {
                return replySuccess(slot, request.echo)
            }
            submitSync(open(slot, request))
        case .cache: prefetch(slot, request)
        case .blockStatus, .disconnect: preconditionFailure("these have verdicts of their own")
        }
    }

    /// For whoever comes after a crash.
    func note(
        _ activity: FlightActivity, _ request: ValidRequest, _ slot: ConnectionIndex
    ) {
        trace.note(
            activity, command: request.command.rawValue,
            export: connections[slot].transmission.path?.export ?? 0, offset: request.offset,
            length: request.length)
    }

    private mutating func open(_ slot: ConnectionIndex, _ valid: ValidRequest) -> RequestIndex {
        connections[slot].transmission.requestCount += 1
        return requests.insert(
            Request(connection: slot, disk: connections[slot].transmission.disk, valid: valid))
    }

    /// Brings a range into the page cache; only its beginning when it is long, for it is a hint.
    ///
    /// It counts as a request until the kernel is through with it: a peer that asks for more than
    /// the disk can do waits for its own answers.
    private mutating func prefetch(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        guard let path = connections[slot].transmission.path, !path.isDirect, valid.length > 0
        else {
            return replySuccess(slot, valid.echo)
        }
        let request = open(slot, valid)
        requests[request].piecesInFlight += 1
        let piece = pieces.insert(
            Piece(
                request: request, disk: connections[slot].transmission.disk, kind: .prefetch,
                offset: valid.offset, count: valid.length))
        io.prepareAdvice(
            .prefetch, path.source, filePosition: valid.offset,
            count: UInt32(min(valid.length, Limits.prefetchBytes)),
            tag: Operation.piece(piece).tag)
    }

    private mutating func prefetchCompleted(_ piece: PieceIndex) {
        let request = pieces.remove(piece).request
        requests[request].piecesInFlight -= 1
        finish(request)
    }

    // MARK: Issuing

    private mutating func issue(_ slot: ConnectionIndex, _ request: RequestIndex) -> IssueResult {
        switch requests[request].valid.command {
        case .read: issueRead(slot, request)
        case .write: issueWrite(slot, request)
        case .blockStatus: continueStatus(slot, request)
        case .flush, .trim, .cache, .writeZeroes, .disconnect: .issued
        }
    }

    /// The connection dies while a request is being cut into pieces: those in flight finish, the
    /// rest never starts.
    mutating func abandonCurrent(_ slot: ConnectionIndex) {
        guard let request = connections[slot].transmission.current else { return }
        connections[slot].transmission.current = nil
        requests[request].issued = requests[request].valid.length
        // A payload that is being received stays until the kernel has returned its buffer.
        if requests[request].piecesInFlight == 0 { discard(request) }
    }

    /// Notes the first error of a request.
    mutating func fail(
        _ request: RequestIndex, _ error: WireError, _ text: String, at offset: UInt64
    ) {
        guard requests[request].failure == nil else { return }
        requests[request].failure = RequestFailure(error: error, text: text, offset: offset)
    }

    /// Frees a finished or abandoned request.
    mutating func discard(_ request: RequestIndex) {
        let slot = requests[request].connection
        if let guest = requests[request].guest { forget(guest, of: slot) }
        requests.remove(request)
        connections[slot].transmission.requestCount -= 1
        markReady(slot)
        wakeStarved()
    }

    /// Answers a request whose reply has no data, and frees it.
    mutating func finish(_ request: RequestIndex) {
        let slot = requests[request].connection
        if let guest = requests[request].guest {
            answer(guest, slot, isGood: requests[request].failure == nil)
        } else if connections[slot].phase != .closing {
            let echo = requests[request].valid.echo
            if let failure = requests[request].failure {
                replyError(slot, echo, failure.error, failure.text)
            } else {
                replySuccess(slot, echo)
            }
        }
        discard(request)
    }

    /// An operation of a request has completed.
    mutating func pieceCompleted(_ piece: PieceIndex, result: Int32) {
        let request = pieces[piece].request
        note(.completion, requests[request].valid, requests[request].connection)
        switch pieces[piece].kind {
        case .read: readCompleted(piece, result: result)
        case .write: writeCompleted(piece, result: result)
        case .zero, .discard: zeroCompleted(piece, result: result)
        case .sync: syncCompleted(piece, result: result)
        case .prefetch: prefetchCompleted(piece)
        case .status: statusCompleted(piece, result: result)
        case .guestRead: guestReadCompleted(piece, result: result)
        }
    }

    /// The NBD error for a failed call on the guest's own disk.
    static func wireError(_ errno: Int32) -> WireError {
        switch errno {
        case Errno.noSpace, Errno.quota, Errno.fileTooBig: .noSpace
        default: .ioError
        }
    }
}

/// What became of an attempt to cut the current request into pieces.
enum IssueResult {
    /// All of it is on its way; the next request may be parsed.
    case issued
    /// Something has to complete first; that gives the connection its next turn.
    case blocked
    /// There is more to do now, but others come first.
    case again
}
