import IORing
import NBDProtocol
import ServerInterface
import SystemLayer
import TLS
import Tables

/// TLS between the socket and everything else: what is received is opened, what is sent is sealed.
///
/// Parser, requests and replies see plaintext only and do not know. Nothing here waits. Of a
/// channel only what is needed is taken: to copy it counts references.
extension RingLoop where IO: ~Copyable {
    private static var inputPages: Int { Limits.sealedInputBytes / BufferArena.pageBytes }
    private static var outputPages: Int { Limits.sealedOutputBytes / BufferArena.pageBytes }

    // MARK: Beginning

    /// STARTTLS is granted: as soon as its reply has left in plaintext, the session begins.
    mutating func startTLS(_ slot: ConnectionIndex) {
        flush(slot)
        if connections[slot].phase == .closing { return }
        if connections[slot].outbox.waitsForWritable {
            connections[slot].negotiation.next = .tls
            return
        }
        connections[slot].negotiation.next = .option
        precondition(
            connections[slot].outbox.replies.isEmpty, "plaintext ends with the reply to STARTTLS")
        guard let credentials = shared.security.credentials else { return close(slot) }
        do throws(TLSFault) {
            let session = try TLSSession(credentials)
            guard openChannel(slot, session, []) else { return close(slot) }
        } catch {
            return refuse(slot, error)
        }
        connections[slot].enter(.securing, until: connections[slot].phaseEnd)
        secure(slot)
    }

    private mutating func openChannel(
        _ slot: ConnectionIndex, _ session: TLSSession, _ sealed: [UInt8]
    ) -> Bool {
        guard let buffer = arena.allocate(pages: Self.inputPages) else { return false }
        store(sealed, at: buffer)
        var channel = SecureChannel(session: session, input: buffer)
        channel.inputEnd = sealed.count
        connections[slot].tls = channel
        connections[slot].isSecured = true
        return true
    }

    /// Goes on agreeing upon TLS; then the handshake of NBD begins anew.
    mutating func secure(_ slot: ConnectionIndex) {
        guard let session = connections[slot].tls?.session,
            let received = connections[slot].tls?.received
        else { return close(slot) }
        let (consumed, step) = session.handshake(
            arena.bytes(received.lowerBound, count: received.count))
        connections[slot].tls?.inputStart += consumed
        flush(slot)
        guard connections[slot].phase == .securing else { return }
        switch step {
        case .wantsInput: armReceive(slot)
        case .established:
            connections[slot].negotiation.handshake.secured()
            connections[slot].rights = shared.security.rights(
                tls: session.peer, local: connections[slot].localPeer)
            connections[slot].enter(.handshake, until: connections[slot].phaseEnd)
            negotiate(slot)
        case .failed(let fault): refuse(slot, fault)
        }
    }

    private mutating func refuse(_ slot: ConnectionIndex, _ fault: TLSFault) {
        shared.emit(
            .clientRefused(jobID: connections[slot].scope.jobID, reason: "TLS: " + fault.text))
        drain(slot)
    }

    // MARK: Moving and ending

    /// Takes up the session of a connection that comes from another ring; false: no memory.
    mutating func adoptSession(_ slot: ConnectionIndex, _ security: ConnectionSecurity) -> Bool {
        guard let session = security.session else { return true }
        return openChannel(slot, session, security.sealed)
    }

    /// Gives the channel's memory back; returns what another ring needs to go on.
    mutating func takeChannel(_ slot: ConnectionIndex) -> ConnectionSecurity {
        var security = ConnectionSecurity(
            mode: connections[slot].tlsMode, localPeer: connections[slot].localPeer,
            rights: connections[slot].rights)
        guard let channel = connections[slot].tls else { return security }
        append(channel.received, to: &security.sealed)
        security.session = channel.session
        arena.free(channel.input, pages: Self.inputPages)
        if let output = channel.output { arena.free(output.buffer, pages: Self.outputPages) }
        connections[slot].tls = nil
        connections[slot].isSecured = false
        return security
    }

    /// The last reply is sealed: the peer is told that nothing follows.
    // Kept out of `serve`, which counts no references (dev/specialised).
    @inline(never)
    mutating func sayGoodbye(_ slot: ConnectionIndex) {
        guard let session = connections[slot].tls?.session else {
            return
        }
        session.sayGoodbye()
        flush(slot)
    }

    /// The connection ends now, whatever was still to be said: the peer is told so as far as its
    /// socket takes it at once, for no end waits for a peer.
    mutating func bidFarewell(_ slot: ConnectionIndex) {
        guard connections[slot].phase != .securing,
            !connections[slot].outbox.waitsForWritable,
            let session = connections[slot].tls?.session, let input = connections[slot].tls?.input,
            connections[slot].tls?.output?.isSent ?? true
        else { return }
        session.sayGoodbye()
        let farewell = session.takeOutbox(atMost: Limits.inputBytes)
        guard !farewell.isEmpty else { return }
        // Nothing more is opened or parsed; what is being received lies in the sealed buffer.
        let place =
            connections[slot].inbox.isReceiving ? connections[slot].inbox.buffer : input
        store(farewell, at: place)
        io.beginGather()
        io.gather(arena, at: place, count: farewell.count)
        _ = io.sendGathered(to: connections[slot].socket, more: false)
    }

    // MARK: Receiving

    /// Gets more plaintext for the parser: from what is there, else from the socket.
    mutating func receiveSealed(_ slot: ConnectionIndex) {
        if connections[slot].phase != .securing {
            let got = open(
                slot, into: connections[slot].inbox.free, count: connections[slot].inbox.freeBytes)
            connections[slot].inbox.append(got)
            if got > 0 { return markReady(slot) }
            if connections[slot].phase == .closing { return }
        }
        armSealed(slot, .input)
    }

    /// Asks the socket for more.
    ///
    /// The session takes in what it is offered, so there is room; were there none, the stream is
    /// taken to have ended.
    mutating func armSealed(_ slot: ConnectionIndex, _ what: Inbox.Receiving) {
        guard let input = connections[slot].tls?.input,
            let received = connections[slot].tls?.received
        else { return close(slot) }
        let left = received.count
        arena.copy(from: received.lowerBound, to: input, count: left)
        connections[slot].tls?.inputStart = 0
        connections[slot].tls?.inputEnd = left
        connections[slot].inbox.receiving = what
        io.prepareReceive(
            connections[slot].socket, into: arena, at: input + left,
            count: Limits.sealedInputBytes - left, whole: false,
            tag: Operation.receive(slot).tag)
    }

    mutating func sealedReceived(
        _ slot: ConnectionIndex, _ what: Inbox.Receiving, result: Int32
    ) {
        trace.mark(.record, export: connections[slot].transmission.path?.export ?? 0)
        if result > 0 {
            connections[slot].tls?.inputEnd += Int(result)
            connections[slot].lastProgress = now
        }
        if case .payload(let piece) = what {
            let progress = pieces[piece].progress
            let got =
                result <= 0
                ? 0
                : open(
                    slot, into: pieces[piece].guestData + progress,
                    count: Int(pieces[piece].count) - progress)
            // Part of a record is as good as an interrupted call: the rest is waited for.
            let outcome = result > 0 ? (got > 0 ? Int32(got) : -Errno.interrupted) : result
            payloadReceived(slot, piece, result: outcome)
        } else if result <= 0, result != -Errno.interrupted {
            streamEnded(slot)
        }
        if connections.contains(slot) { markReady(slot) }
    }

    /// Opens payload straight into a piece; waits for the rest if it is not all there.
    ///
    /// True when complete.
    mutating func fillFromChannel(
        _ slot: ConnectionIndex, _ piece: PieceIndex, there: Int, wanted: Int
    ) -> Bool {
        let got = open(
            slot, into: pieces[piece].guestData + there, count: wanted - there)
        if there + got == wanted { return true }
        pieces[piece].progress = there + got
        armSealed(slot, .payload(piece))
        return false
    }

    /// Opens what has been received, as far as `count` reaches; returns the plaintext's bytes.
    ///
    /// A session that is over shuts the socket down: a pending receive sees the stream's end.
    private mutating func open(_ slot: ConnectionIndex, into target: Int, count: Int) -> Int {
        guard let session = connections[slot].tls?.session,
            let source = connections[slot].tls?.received
        else { return 0 }
        let result = arena.transfer(from: source, to: target..<(target + count)) { sealed, plain in
            session.decrypt(sealed, into: &plain)
        }
        connections[slot].tls?.inputStart += result.consumed
        if result.end != nil, result.produced == 0 {
            connections[slot].tls?.inputStart += source.count - result.consumed
            flush(slot)
            // A peer that goes without a word of NBD is answered in kind.
            if connections[slot].outbox.replies.isEmpty { bidFarewell(slot) }
            io.shutdown(connections[slot].socket)
        }
        return result.produced
    }

    // MARK: Sending

    /// Whether a reply, or part of one, has not been taken by the socket.
    // A method of the connection would get a copy of all of it.
    mutating func hasUnsent(_ slot: ConnectionIndex) -> Bool {
        if !connections[slot].outbox.replies.isEmpty { return true }
        if connections[slot].tls?.output?.isSent == false { return true }
        return connections[slot].tls?.session.hasOutbox == true
    }

    /// Seals replies and sends them, as much as the socket takes.
    mutating func flushSealed(_ slot: ConnectionIndex) {
        while !connections[slot].outbox.waitsForWritable {
            guard seal(slot), let output = connections[slot].tls?.output else { return }
            io.beginGather()
            io.gather(arena, at: output.buffer + output.start, count: output.end - output.start)
            let sent = io.sendGathered(to: connections[slot].socket, more: false)
            guard sent >= 0 else { return notSent(slot, -sent) }
            connections[slot].lastProgress = now
            connections[slot].tls?.output?.start += sent
        }
    }

    /// Fills the sealed buffer once it has been sent; false: there is nothing to send, and the
    /// buffer is given back.
    private mutating func seal(_ slot: ConnectionIndex) -> Bool {
        guard let session = connections[slot].tls?.session else { return false }
        let old = connections[slot].tls?.output
        if let old, !old.isSent { return true }
        if old == nil, !hasUnsent(slot) { return false }
        guard let buffer = old?.buffer ?? arena.allocate(pages: Self.outputPages) else {
            close(slot)
            return false
        }
        var output = SealedOutput(buffer: buffer)
        sealOutbox(session, &output)
        while !connections[slot].outbox.replies.isEmpty, !session.hasOutbox,
            output.free.count >= TLSSession.sealedRecordBytesMax
        {
            guard sealRecord(slot, session, &output) else { break }
        }
        let isEmpty = output.isSent
        if isEmpty { arena.free(buffer, pages: Self.outputPages) }
        connections[slot].tls?.output = isEmpty ? nil : output
        return !isEmpty
    }

    private mutating func sealOutbox(_ session: TLSSession, _ output: inout SealedOutput) {
        guard session.hasOutbox else { return }
        let bytes = session.takeOutbox(atMost: output.free.count)
        store(bytes, at: output.free.lowerBound)
        output.end += bytes.count
    }

    /// Seals the head of the replies; false when the session is over.
    private mutating func sealRecord(
        _ slot: ConnectionIndex, _ session: TLSSession, _ output: inout SealedOutput
    ) -> Bool {
        let segment = connections[slot].outbox.replies[0]
        precondition(segment.filePages == nil, "what is sealed lies in memory")
        // Room was made and not used: an empty record would look like the end to some clients.
        guard segment.start < segment.end else {
            took(slot, 0)
            return true
        }
        let count = min(segment.end - segment.start, TLSSession.recordBytes)
        let result = arena.transfer(
            from: segment.start..<(segment.start + count), to: output.free
        ) { plain, sealed in session.encrypt(plain, into: &sealed) }
        output.end += result.produced
        took(slot, result.consumed)
        if result.end == nil { return true }
        // What is left cannot be sealed any more: a pending receive sees the socket's end.
        io.shutdown(connections[slot].socket)
        while !connections[slot].outbox.replies.isEmpty {
            took(slot, connections[slot].outbox.replies[0].unsentBytes)
        }
        return false
    }
}
