import IORing
import NBDProtocol
import ServerInterface
import System
import TLS
import Tables

/// TLS between the socket and everything else: what is received is opened, what is sent is sealed.
///
/// Parser, requests and replies see plaintext only and do not know. Nothing here waits.
extension RingLoop where IO: ~Copyable {
    private static var inputPages: Int { Limits.sealedInputBytes / BufferArena.pageBytes }
    private static var outputPages: Int { Limits.sealedOutputBytes / BufferArena.pageBytes }

    // MARK: Beginning

    /// STARTTLS is granted: as soon as its reply has left in plaintext, the session begins.
    mutating func startTLS(_ slot: ConnectionIndex) {
        flush(slot)
        if connections[slot].phase == .closing { return }
        connections[slot].startsTLS = connections[slot].waitsForWritable
        if connections[slot].startsTLS { return }
        precondition(connections[slot].output.isEmpty, "plaintext ends with the reply to STARTTLS")
        guard let credentials = shared.security.credentials else { return close(slot) }
        do throws(TLSFault) {
            let session = try TLSSession(credentials)
            guard openChannel(slot, session, []) else { return close(slot) }
        } catch {
            return refuse(slot, error)
        }
        connections[slot].phase = .securing
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
        guard let channel = connections[slot].tls else { return close(slot) }
        let (consumed, step) = channel.session.handshake(
            arena.bytes(
                channel.input + channel.inputStart, count: channel.inputEnd - channel.inputStart))
        connections[slot].tls?.inputStart += consumed
        flush(slot)
        guard connections[slot].phase == .securing else { return }
        switch step {
        case .wantsInput: armReceive(slot)
        case .established:
            connections[slot].handshake.secured()
            connections[slot].rights = shared.security.rights(
                tls: channel.session.peer, local: connections[slot].localPeer)
            connections[slot].phase = .handshake
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
    mutating func releaseSession(_ slot: ConnectionIndex) -> ConnectionSecurity {
        var security = ConnectionSecurity(
            mode: connections[slot].tlsMode, localPeer: connections[slot].localPeer,
            rights: connections[slot].rights)
        guard let channel = connections[slot].tls else { return security }
        append(
            (channel.input + channel.inputStart)..<(channel.input + channel.inputEnd),
            to: &security.sealed)
        security.session = channel.session
        arena.free(channel.input, pages: Self.inputPages)
        if channel.output >= 0 { arena.free(channel.output, pages: Self.outputPages) }
        connections[slot].tls = nil
        return security
    }

    /// The last reply is sealed: the peer is told that nothing follows.
    mutating func sayGoodbye(_ slot: ConnectionIndex) {
        guard connections[slot].isSecured, let session = connections[slot].tls?.session else {
            return
        }
        session.sayGoodbye()
        flush(slot)
    }

    /// The connection ends now, whatever was still to be said: the peer is told so as far as its
    /// socket takes it at once, for no end waits for a peer.
    mutating func bidFarewell(_ slot: ConnectionIndex) {
        guard connections[slot].isSecured, connections[slot].phase != .securing,
            !connections[slot].waitsForWritable, let channel = connections[slot].tls,
            channel.outputStart == channel.outputEnd
        else { return }
        channel.session.sayGoodbye()
        let farewell = channel.session.takeOutbox(atMost: Limits.inputBytes)
        guard !farewell.isEmpty else { return }
        // Nothing more is opened or parsed; what is being received lies in the sealed buffer.
        let place = connections[slot].isReceiving ? connections[slot].input : channel.input
        store(farewell, at: place)
        io.beginGather()
        io.gather(arena, at: place, count: farewell.count)
        _ = io.sendGathered(to: connections[slot].socket, more: false)
    }

    // MARK: Receiving

    /// Gets more plaintext for the parser: from what is there, else from the socket.
    mutating func receiveSealed(_ slot: ConnectionIndex) {
        if connections[slot].phase != .securing {
            let end = connections[slot].inputEnd
            let got = open(
                slot, into: connections[slot].input + end, count: Limits.inputBytes - end)
            connections[slot].inputEnd += got
            if got > 0 { return markReady(slot) }
            if connections[slot].phase == .closing { return }
        }
        armSealed(slot)
    }

    /// Asks the socket for more.
    ///
    /// The session takes in what it is offered, so there is room; were there none, the stream is taken
    /// to have ended.
    mutating func armSealed(_ slot: ConnectionIndex) {
        guard let channel = connections[slot].tls else { return close(slot) }
        let left = channel.inputEnd - channel.inputStart
        arena.copy(from: channel.input + channel.inputStart, to: channel.input, count: left)
        connections[slot].tls?.inputStart = 0
        connections[slot].tls?.inputEnd = left
        connections[slot].isReceiving = true
        io.prepareReceive(
            connections[slot].socket, into: arena, at: channel.input + left,
            count: Limits.sealedInputBytes - left, whole: false,
            tag: Operation.receive(slot).tag)
    }

    mutating func sealedReceived(_ slot: ConnectionIndex, result: Int32) {
        if result > 0 {
            connections[slot].tls?.inputEnd += Int(result)
            connections[slot].lastProgress = now
        }
        if let piece = connections[slot].receivingPiece {
            connections[slot].receivingPiece = nil
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
            connections[slot].sawEnd = true
            if connections[slot].phase != .draining { close(slot) }
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
        connections[slot].receivingPiece = piece
        armSealed(slot)
        return false
    }

    /// Opens what has been received, as far as `count` reaches; returns the plaintext's bytes.
    ///
    /// A session that is over shuts the socket down: whoever waits for more sees the stream's end.
    private mutating func open(_ slot: ConnectionIndex, into target: Int, count: Int) -> Int {
        guard let channel = connections[slot].tls else { return 0 }
        let source = (channel.input + channel.inputStart)..<(channel.input + channel.inputEnd)
        let result = arena.transfer(from: source, to: target..<(target + count)) { sealed, plain in
            channel.session.decrypt(sealed, into: &plain)
        }
        connections[slot].tls?.inputStart += result.consumed
        if result.end != nil, result.produced == 0 {
            connections[slot].tls?.inputStart = channel.inputEnd
            flush(slot)
            // A peer that goes without a word of NBD is answered in kind.
            if connections[slot].output.isEmpty { bidFarewell(slot) }
            io.shutdown(connections[slot].socket)
        }
        return result.produced
    }

    // MARK: Sending

    /// Seals replies and sends them, as much as the socket takes.
    mutating func flushSealed(_ slot: ConnectionIndex) {
        while !connections[slot].waitsForWritable {
            guard seal(slot), let channel = connections[slot].tls else { return }
            io.beginGather()
            io.gather(
                arena, at: channel.output + channel.outputStart,
                count: channel.outputEnd - channel.outputStart)
            let sent = io.sendGathered(to: connections[slot].socket, more: false)
            guard sent >= 0 else { return notSent(slot, -sent) }
            connections[slot].lastProgress = now
            connections[slot].tls?.outputStart += sent
        }
    }

    /// Fills the sealed buffer once it has been sent; false: there is nothing to send, and the buffer
    /// is given back.
    private mutating func seal(_ slot: ConnectionIndex) -> Bool {
        guard var channel = connections[slot].tls else { return false }
        if channel.outputStart < channel.outputEnd { return true }
        channel.outputStart = 0
        channel.outputEnd = 0
        defer { connections[slot].tls = channel }
        if channel.output < 0, !connections[slot].hasUnsent { return false }
        if channel.output < 0 {
            guard let buffer = arena.allocate(pages: Self.outputPages) else {
                close(slot)
                return false
            }
            channel.output = buffer
        }
        sealOutbox(&channel)
        while !connections[slot].output.isEmpty, !channel.session.hasOutbox,
            Limits.sealedOutputBytes - channel.outputEnd >= TLSSession.sealedRecordBytesMax
        {
            guard sealRecord(slot, &channel) else { break }
        }
        if channel.outputEnd == 0 {
            arena.free(channel.output, pages: Self.outputPages)
            channel.output = -1
        }
        return channel.outputEnd > 0
    }

    private mutating func sealOutbox(_ channel: inout SecureChannel) {
        guard channel.session.hasOutbox else { return }
        let room = Limits.sealedOutputBytes - channel.outputEnd
        let bytes = channel.session.takeOutbox(atMost: room)
        store(bytes, at: channel.output + channel.outputEnd)
        channel.outputEnd += bytes.count
    }

    /// Seals the head of the replies; false when the session is over.
    private mutating func sealRecord(_ slot: ConnectionIndex, _ channel: inout SecureChannel)
        -> Bool
    {
        let segment = connections[slot].output[0]
        precondition(segment.filePages == nil, "what is sealed lies in memory")
        // Room was made and not used: an empty record would look like the end to some clients.
        guard segment.start < segment.end else {
            took(slot, 0)
            return true
        }
        let count = min(segment.end - segment.start, TLSSession.recordBytes)
        let session = channel.session
        let start = channel.output + channel.outputEnd
        let room = start..<(channel.output + Limits.sealedOutputBytes)
        let result = arena.transfer(from: segment.start..<(segment.start + count), to: room) {
            plain, sealed in session.encrypt(plain, into: &sealed)
        }
        channel.outputEnd += result.produced
        took(slot, result.consumed)
        if result.end == nil { return true }
        // What is left cannot be sealed any more: the socket's end is seen by whoever waits for it.
        io.shutdown(connections[slot].socket)
        while !connections[slot].output.isEmpty {
            took(slot, connections[slot].output[0].unsentBytes)
        }
        return false
    }
}
