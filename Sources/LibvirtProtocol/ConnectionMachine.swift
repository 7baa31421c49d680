/// A call that may be made: it is served, its caller may make it, and its arguments have its shape.
package struct IncomingCall: Sendable, Hashable {
    package let entry: ProcedureEntry
    package let packet: Packet

    package init(entry: ProcedureEntry, packet: Packet) {
        self.entry = entry
        self.packet = packet
    }

    /// Reads the arguments, of which nothing is missing and nothing is left over.
    package var arguments: XDRReader { XDRReader(packet.body) }
}

/// One client's conversation as a machine over bytes: it decides what a packet is and who may send
/// it, and knows nothing of sockets, clocks and domains.
package struct ConnectionMachine: Sendable {
    /// What to do next, in this order.
    package enum Action: Sendable, Hashable {
        case send(Packet)
        /// Answer it, now or later; ``finished(bytes:)`` follows.
        case call(IncomingCall)
        /// A call of a procedure or program that is not served, or a part of a stream.
        case unserved(Packet)
        /// The peer has broken the protocol, or has nothing more to send.
        case hangUp(HangUp)
    }

    /// Why a connection ends.
    package enum HangUp: Sendable, Hashable {
        case framing(FramingError)
        case unexpectedType(UInt32)
        case silent
    }

    /// How far the conversation has come.
    package enum Phase: Sendable, Hashable {
        case greeting
        case open(isReadOnly: Bool)
        /// The client has closed it: whatever it still sends is ignored.
        case closing
    }

    package private(set) var phase = Phase.greeting
    /// Whether the client has asked for keepalive, so that PINGs are answered.
    package private(set) var knowsKeepalive = false
    /// Calls that are begun and not answered, and the bytes of their arguments.
    package private(set) var callCount = 0
    package private(set) var callBytes = 0

    private var framer = PacketFramer()
    private var unansweredPings = 0

    package init() {}

    /// Whether a packet has begun and is not complete.
    package var isInsidePacket: Bool { framer.isInsidePacket }

    /// Whether there is room for more calls; while there is not, the peer is not read.
    package var takesCalls: Bool {
        callCount < LibvirtLimits.callsPerConnection
            && callBytes < LibvirtLimits.callBytesPerConnection
    }

    /// Takes bytes of the peer's.
    package mutating func append(_ bytes: some Sequence<UInt8>) {
        unansweredPings = 0
        framer.append(bytes)
    }

    /// What to do next; nil until more bytes come, or room for calls does.
    package mutating func next() -> Action? {
        while takesCalls, phase != .closing {
            let packet: Packet?
            do throws(FramingError) {
                packet = try framer.next()
            } catch {
                phase = .closing
                return .hangUp(.framing(error))
            }
            guard let packet else { return nil }
            if let action = action(for: packet) { return action }
        }
        return nil
    }

    /// The connection is opened.
    package mutating func opened(
        isReadOnly: Bool, packetBytesMax: Int = LibvirtLimits.packetBytesMax
    ) {
        guard phase == .greeting else { return }
        phase = .open(isReadOnly: isReadOnly)
        framer.bytesMax = packetBytesMax
    }

    /// The client has closed the connection: the reply to that is the last it is sent.
    package mutating func closed() { phase = .closing }

    /// The client has asked whether keepalive is understood.
    package mutating func learnedKeepalive() { knowsKeepalive = true }

    /// A call has been answered; `bytes` are those of its arguments.
    package mutating func finished(bytes: Int) {
        callCount -= 1
        callBytes -= bytes
    }

    /// The peer has been silent for an interval of keepalive.
    package mutating func silent() -> Action? {
        guard knowsKeepalive, phase != .closing else { return nil }
        guard unansweredPings < LibvirtLimits.keepaliveCount else {
            phase = .closing
            return .hangUp(.silent)
        }
        unansweredPings += 1
        return .send(.keepalive(KeepaliveProcedure.ping))
    }

    private mutating func action(for packet: Packet) -> Action? {
        let header = packet.header
        if header.program == LibvirtProgram.keepalive { return keepalive(header) }
        switch PacketType(rawValue: header.type) {
        case .call: break
        // Clients are told not to send any: nothing here accepts them.
        case .callWithDescriptors: return .unserved(packet)
        // What follows a stream that has ended is on its way already.
        case .stream, .streamHole: return .unserved(packet)
        case .reply, .message, .replyWithDescriptors, nil:
            phase = .closing
            return .hangUp(.unexpectedType(header.type))
        }
        guard header.status == PacketStatus.ok.rawValue else {
            return .send(.failure(header, .unexpectedStatus(header.status)))
        }
        guard header.program == LibvirtProgram.remote, header.version == LibvirtProgram.version
        else { return .unserved(packet) }
        if let entry = ProcedureTable.entry(Procedure(rawValue: header.procedure)) {
            return action(for: entry, packet)
        }
        return phase == .greeting ? .send(.failure(header, .notOpen)) : .unserved(packet)
    }

    private mutating func action(for entry: ProcedureEntry, _ packet: Packet) -> Action {
        switch (entry.access, phase) {
        case (.anybody, .open) where entry.procedure == .open:
            return .send(.failure(packet.header, .alreadyOpen))
        case (.anybody, _), (.readOnly, .open), (.readWrite, .open(isReadOnly: false)): break
        case (_, .greeting), (_, .closing): return .send(.failure(packet.header, .notOpen))
        case (.readWrite, .open):
            return .send(.failure(packet.header, .readOnly(entry.procedure)))
        }
        do throws(XDRError) {
            try XDRShape.check(entry.arguments, packet.body)
        } catch {
            return .send(.failure(packet.header, .malformed))
        }
        callCount += 1
        callBytes += packet.body.count
        return .call(IncomingCall(entry: entry, packet: packet))
    }

    private func keepalive(_ header: PacketHeader) -> Action? {
        header.procedure == KeepaliveProcedure.ping
            ? .send(.keepalive(KeepaliveProcedure.pong)) : nil
    }
}

extension Packet {
    /// The answer to a call that has failed.
    package static func failure(_ header: PacketHeader, _ error: WireError) -> Packet {
        Packet(header.reply(.error), body: error.body)
    }
}
