import IORing
import NBDProtocol
import System
import Tables

/// A connection's turn: requests are parsed, begun and answered.
extension RingLoop where IO: ~Copyable {
    mutating func serve(_ slot: ConnectionIndex) {
        switch connections[slot].phase {
        case .handshake: negotiate(slot)
        case .securing: secure(slot)
        case .transmission: transmit(slot)
        case .draining: goOn(slot)
        case .closing: return reap(slot)
        }
        // The turn may have handed the connection to another ring.
        guard connections.contains(slot) else { return }
        let unsent = connections[slot].output.unsentBytes
        flush(slot)
        if connections[slot].isBlocked, connections[slot].output.unsentBytes < unsent {
            markReady(slot)
        }
        switch connections[slot].phase {
        case .closing: reap(slot)
        case .draining:
            if connections[slot].requestCount == 0, connections[slot].output.isEmpty {
                sayGoodbye(slot)
                if !connections[slot].hasUnsent { close(slot) }
            }
        case .handshake, .securing, .transmission: break
        }
    }

    mutating func negotiate(_ slot: ConnectionIndex) {
        if connections[slot].startsTLS { return startTLS(slot) }
        if let agreed = connections[slot].agreed {
            connections[slot].agreed = nil
            return enterTransmission(slot, agreed)
        }
        while connections[slot].phase == .handshake {
            let start = connections[slot].inputStart
            let count = connections[slot].inputEnd - start
            let step = advanceHandshake(slot, start, count)
            switch step {
            case .needBytes:
                return armReceive(slot)
            case .progressed(let consumed):
                connections[slot].inputStart += consumed
            case .startTLS(let consumed):
                connections[slot].inputStart += consumed
                return startTLS(slot)
            case .finished(let consumed, let negotiated):
                connections[slot].inputStart += consumed
                enterTransmission(slot, negotiated)
                if connections.contains(slot), connections[slot].phase == .transmission {
                    transmit(slot)
                }
                return
            case .close:
                return drain(slot)
            }
            if connections[slot].output.unsentBytes > Limits.unsentBytesPerConnection {
                flush(slot)
                if connections[slot].waitsForWritable { return }
            }
        }
    }

    private mutating func advanceHandshake(
        _ slot: ConnectionIndex, _ start: Int, _ count: Int
    ) -> HandshakeStep {
        let exports = PermittedExports(
            scope: connections[slot].scope, rights: connections[slot].rights)
        var handshake = connections[slot].handshake
        var reply: [UInt8] = []
        let step = handshake.advance(
            arena.bytes(connections[slot].input + start, count: count), directory: exports,
            reply: &reply)
        connections[slot].handshake = handshake
        if !reply.isEmpty { send(reply, to: slot) }
        return step
    }

    private mutating func transmit(_ slot: ConnectionIndex) {
        var budget = Limits.requestsPerTurn
        let bytesRead = connections[slot].unreportedBytes
        connections[slot].isBlocked = false
        while connections[slot].phase == .transmission {
            if budget == 0 || connections[slot].unreportedBytes >= bytesRead + Limits.bytesPerTurn {
                return markReady(slot)
            }
            budget -= 1
            if let current = connections[slot].current {
                switch issue(slot, current) {
                case .issued: continue
                case .blocked:
                    connections[slot].isBlocked = true
                    return
                case .again: return markReady(slot)
                }
            }
            guard mayBegin(slot) else {
                connections[slot].isBlocked = true
                return
            }
            switch nextRequest(slot) {
            case .needBytes: return armReceive(slot)
            case .badMagic: return close(slot)
            case .progressed(let consumed):
                connections[slot].inputStart += consumed
            case .request(let verdict, let consumed):
                connections[slot].inputStart += consumed
                begin(slot, verdict)
            }
        }
    }

    private mutating func nextRequest(_ slot: ConnectionIndex) -> RequestStep {
        let start = connections[slot].inputStart
        guard var reader = connections[slot].reader else {
            preconditionFailure("transmission begins with a reader")
        }
        let step = reader.next(
            arena.bytes(
                connections[slot].input + start, count: connections[slot].inputEnd - start))
        connections[slot].reader = reader
        return step
    }

    /// A draining connection still finishes the request it had begun.
    private mutating func goOn(_ slot: ConnectionIndex) {
        while connections[slot].phase == .draining, let current = connections[slot].current {
            switch issue(slot, current) {
            case .issued: continue
            case .blocked:
                connections[slot].isBlocked = true
                return
            case .again: return markReady(slot)
            }
        }
    }

    /// Whether limits let the connection begin another request.
    private mutating func mayBegin(_ slot: ConnectionIndex) -> Bool {
        if connections[slot].requestCount >= Limits.requestsPerConnection { return false }
        let unsent = connections[slot].output.unsentBytes
        if unsent >= Limits.pieceBytes { flush(slot) }
        if connections[slot].output.unsentBytes >= Limits.unsentBytesPerConnection
            || connections[slot].output.count >= OutputQueue.capacity / 4
        {
            return false
        }
        // A request must find room, and one operation for it.
        if requests.isFull || pieces.count >= Limits.begunPiecesPerRing {
            starved.append(slot)
            return false
        }
        return connections[slot].phase == .transmission
    }

    private mutating func begin(_ slot: ConnectionIndex, _ verdict: RequestVerdict) {
        switch verdict {
        case .accept(let request): begin(slot, request)
        case .acceptStatus(let request, let asked):
            connections[slot].current = open(slot, request)
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
        switch request.command {
        case .read:
            if request.length == 0 { return replySuccess(slot, request.echo, isRead: true) }
            if readInline(slot, request) { return }
            connections[slot].current = open(slot, request)
        case .write, .trim, .writeZeroes:
            if request.length == 0 { return replySuccess(slot, request.echo) }
            let opened = open(slot, request)
            if request.command == .write {
                connections[slot].current = opened
            } else if connections[slot].disk == nil {
                startRelease(opened)
            } else {
                startZeroing(opened)
            }
        case .flush:
            if connections[slot].disk == nil { return replySuccess(slot, request.echo) }
            submitSync(open(slot, request))
        case .cache: prefetch(slot, request)
        case .blockStatus, .disconnect: preconditionFailure("these have verdicts of their own")
        }
    }

    private mutating func open(_ slot: ConnectionIndex, _ valid: ValidRequest) -> RequestIndex {
        connections[slot].requestCount += 1
        return requests.insert(
            Request(connection: slot, disk: connections[slot].disk, valid: valid))
    }

    /// Brings a range into the page cache; only its beginning when it is long, for it is a hint.
    ///
    /// It counts as a request until the kernel is through with it: a peer that asks for more than the
    /// disk can do waits for its own answers.
    private mutating func prefetch(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        guard !connections[slot].path.isDirect, valid.length > 0 else {
            return replySuccess(slot, valid.echo)
        }
        let request = open(slot, valid)
        requests[request].piecesInFlight += 1
        let piece = pieces.insert(
            Piece(
                request: request, disk: connections[slot].disk, kind: .prefetch,
                offset: valid.offset, count: valid.length))
        io.prepareAdvice(
            .prefetch, connections[slot].path.source, filePosition: valid.offset,
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
        guard let request = connections[slot].current else { return }
        connections[slot].current = nil
        requests[request].issued = requests[request].valid.length
        // A payload that is being received stays until the kernel has let go of its buffer.
        if requests[request].piecesInFlight == 0 { discard(request) }
    }

    /// Notes the first error of a request.
    mutating func fail(
        _ request: RequestIndex, _ error: WireError, _ text: String, at offset: UInt64
    ) {
        guard requests[request].error == nil else { return }
        requests[request].error = error
        requests[request].errorText = text
        requests[request].errorOffset = offset
    }

    /// Frees a finished or abandoned request.
    mutating func discard(_ request: RequestIndex) {
        let slot = requests[request].connection
        requests.remove(request)
        connections[slot].requestCount -= 1
        markReady(slot)
        wakeStarved()
    }

    /// Answers a request whose reply has no data, and frees it.
    mutating func finish(_ request: RequestIndex) {
        let slot = requests[request].connection
        if connections[slot].phase != .closing {
            let echo = requests[request].valid.echo
            if let error = requests[request].error {
                replyError(slot, echo, error, requests[request].errorText)
            } else {
                replySuccess(slot, echo)
            }
        }
        discard(request)
    }

    /// An operation of a request has completed.
    mutating func pieceCompleted(_ piece: PieceIndex, result: Int32) {
        switch pieces[piece].kind {
        case .read: readCompleted(piece, result: result)
        case .write: writeCompleted(piece, result: result)
        case .zero, .discard: zeroCompleted(piece, result: result)
        case .sync: syncCompleted(piece, result: result)
        case .prefetch: prefetchCompleted(piece)
        }
    }

    /// The NBD error for a failed call on the guest's own disk.
    func wireError(_ errno: Int32) -> WireError {
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
