import LibvirtProtocol
import NIOCore
import NIOPosix
import Synchronization

/// One connection to libvirtd, opened and ready for calls.
///
/// It belongs to one client, or to one call of the server's own. Packets of the client pass with
/// their serials as they are; calls of the door have serials of their own and each its deadline.
/// What comes is handed on in the order in which it comes, and nothing more is read while somebody
/// downstream has no room for it.
final class UpstreamConnection: Sendable {
    /// What waits for an answer.
    private enum Waiter {
        case call(CheckedContinuation<Result<Packet, UpstreamFault>, Never>, Scheduled<Void>?)
        /// Runs before anything that follows the answer is handled.
        case inOrder(@Sendable (Result<Packet, UpstreamFault>) async -> Void)
        /// Nobody, any more.
        case abandoned
    }

    private struct State {
        var waiters: [UInt32: Waiter] = [:]
        var nextSerial = UpstreamSerial.first
        /// Calls of the client that are not answered.
        var passedCalls = 0
        var abandoned = 0
        /// The client has no room: silence is not libvirtd's.
        var isDelivering = false
        var end: UpstreamFault?
    }

    private let path: String
    private let channel: NIOAsyncChannel<Packet, ByteBuffer>
    private let heard: HeardAt
    private let state = Mutex(State())
    private let deliver: @Sendable (Packet) async -> Void
    private let ended: @Sendable (UpstreamFault) -> Void

    private init(
        path: String, channel: NIOAsyncChannel<Packet, ByteBuffer>, heard: HeardAt,
        deliver: @escaping @Sendable (Packet) async -> Void,
        ended: @escaping @Sendable (UpstreamFault) -> Void
    ) {
        self.path = path
        self.channel = channel
        self.heard = heard
        self.deliver = deliver
        self.ended = ended
    }

    /// Connects, and opens `uri` with the client's `flags`.
    ///
    /// `deliver` takes what is no answer to a call of the door: replies to the client's own calls,
    /// events, streams. `ended` is called once, when nothing more will come.
    static func open(
        _ settings: UpstreamSettings, uri: String, flags: UInt32,
        deliver: @escaping @Sendable (Packet) async -> Void,
        ended: @escaping @Sendable (UpstreamFault) -> Void = { _ in }
    ) async throws(UpstreamFault) -> UpstreamConnection {
        let connection = try await connect(settings.socketPath, deliver, ended)
        do throws(UpstreamFault) {
            try await connection.greet(uri: uri, flags: flags)
        } catch {
            connection.close()
            throw error
        }
        return connection
    }

    private static func connect(
        _ path: String, _ deliver: @escaping @Sendable (Packet) async -> Void,
        _ ended: @escaping @Sendable (UpstreamFault) -> Void
    ) async throws(UpstreamFault) -> UpstreamConnection {
        let heard = HeardAt()
        let channel: NIOAsyncChannel<Packet, ByteBuffer>
        do {
            channel = try await ClientBootstrap(group: .singletonMultiThreadedEventLoopGroup)
                .connectTimeout(.seconds(UpstreamLimits.openSeconds))
                .connect(unixDomainSocketPath: path) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try channel.pipeline.syncOperations.addHandler(
                            UpstreamFraming { heard.note() })
                        // One packet is in hand, and at most what came with its last bytes.
                        return try NIOAsyncChannel<Packet, ByteBuffer>(
                            wrappingChannelSynchronously: channel,
                            configuration: NIOAsyncChannel.Configuration(
                                backPressureStrategy: .init(lowWatermark: 1, highWatermark: 1)))
                    }
                }
        } catch {
            throw .unreachable(path: path, detail: Self.text(error))
        }
        let connection = UpstreamConnection(
            path: path, channel: channel, heard: heard, deliver: deliver, ended: ended)
        // Its end ends the task: a connection is closed or fails.
        Task { await connection.run() }
        return connection
    }

    private static func text(_ error: any Error) -> String {
        guard let error = error as? IOError else { return "\(error)" }
        return SystemCalls.errorText(error.errnoCode)
    }

    private func greet(uri: String, flags: UInt32) async throws(UpstreamFault) {
        let ways = try await call(.authList, [], seconds: UpstreamLimits.openSeconds)
        var reader = XDRReader(ways.body)
        var kinds: [Int32] = []
        do throws(XDRError) {
            for _ in 0..<(try reader.count(limit: 20)) { kinds.append(try reader.int()) }
        } catch {
            throw .garbled(path: path, detail: "\(error)")
        }
        guard kinds.contains(0) else { throw .wantsAuthentication(path: path) }
        var arguments = XDRWriter()
        arguments.optionalString(uri)
        arguments.uint(flags)
        _ = try await call(.open, arguments.bytes, seconds: UpstreamLimits.openSeconds)
    }

    /// Closes it; those who wait for an answer get an error.
    func close() { channel.channel.close(promise: nil) }
}

// MARK: Towards libvirtd

extension UpstreamConnection {
    /// Makes a call of the door's own and returns its answer, which is not an error.
    ///
    /// `seconds` nil: waits as long as libvirtd lives.
    func call(
        _ procedure: Procedure, _ body: [UInt8], seconds: Int64? = UpstreamLimits.answerSeconds
    ) async throws(UpstreamFault) -> Packet {
        let reply = await reply(to: procedure, body, seconds: seconds)
        let packet = try reply.get()
        guard packet.header.status == PacketStatus.ok.rawValue else {
            let refusal: WireError
            do throws(XDRError) {
                refusal = try WireError(body: packet.body)
            } catch {
                throw .garbled(path: path, detail: "an error: \(error)")
            }
            throw .refused(refusal)
        }
        return packet
    }

    /// The same, with the answer as it came.
    func reply(
        to procedure: Procedure, _ body: [UInt8], seconds: Int64? = UpstreamLimits.answerSeconds
    ) async -> Result<Packet, UpstreamFault> {
        await withCheckedContinuation { continuation in
            begin(procedure, body) { serial in
                let timer = seconds.map { seconds in
                    channel.channel.eventLoop.scheduleTask(in: .seconds(seconds)) {
                        self.abandon(serial, seconds)
                    }
                }
                return .call(continuation, timer)
            } refused: {
                continuation.resume(returning: .failure($0))
            }
        }
    }

    /// Makes a call whose answer is handled in its order: what libvirtd sends after it waits until
    /// `body` is done.
    func callInOrder(
        _ procedure: Procedure, _ arguments: [UInt8],
        body: @escaping @Sendable (Result<Packet, UpstreamFault>) async -> Void
    ) async {
        var refusal: UpstreamFault?
        begin(procedure, arguments) { _ in
            .inOrder(body)
        } refused: {
            refusal = $0
        }
        if let refusal { await body(.failure(refusal)) }
    }

    /// Passes a packet of the client's on; the future ends when it has left.
    func pass(_ packet: Packet) -> EventLoopFuture<Void> {
        if packet.header.type == PacketType.call.rawValue {
            state.withLock { state in
                noteDue(state)
                state.passedCalls += 1
            }
        }
        return channel.channel.writeAndFlush(packet.buffer)
    }

    /// Whether calls may still be answered.
    var isOpen: Bool { state.withLock { $0.end == nil } }

    /// What libvirtd says is not what it should be.
    func garbled(_ detail: String) -> UpstreamFault { .garbled(path: path, detail: detail) }

    private func begin(
        _ procedure: Procedure, _ body: [UInt8], waiter: (UInt32) -> Waiter,
        refused: (UpstreamFault) -> Void
    ) {
        let (serial, end) = state.withLock { state -> (UInt32, UpstreamFault?) in
            if let end = state.end { return (0, end) }
            noteDue(state)
            while state.waiters[state.nextSerial] != nil {
                state.nextSerial = UpstreamSerial.next(state.nextSerial)
            }
            let serial = state.nextSerial
            state.nextSerial = UpstreamSerial.next(serial)
            state.waiters[serial] = waiter(serial)
            return (serial, nil)
        }
        if let end { return refused(end) }
        let packet = Packet(
            PacketHeader(procedure: procedure.rawValue, type: .call, serial: serial), body: body)
        channel.channel.writeAndFlush(packet.buffer, promise: nil)
    }
}

// MARK: From libvirtd

extension UpstreamConnection {
    private func run() async {
        let pings = channel.channel.eventLoop.scheduleRepeatedTask(
            initialDelay: .seconds(UpstreamLimits.pingSeconds),
            delay: .seconds(UpstreamLimits.pingSeconds)
        ) { [weak self] _ in self?.lookAlive() }
        var fault = UpstreamFault.closed(path: path)
        do {
            try await channel.executeThenClose { inbound, _ in
                for try await packet in inbound {
                    guard await receive(packet) else { return }
                }
            }
        } catch let error as FramingError {
            fault = .garbled(path: path, detail: "\(error)")
        } catch {
            // The connection has failed: there is no more to say than that it is gone.
        }
        pings.cancel()
        await finish(fault)
    }

    // False when the connection is over.
    private func receive(_ packet: Packet) async -> Bool {
        let header = packet.header
        if header.program == LibvirtProgram.keepalive {
            if header.procedure == KeepaliveProcedure.ping {
                send(.keepalive(KeepaliveProcedure.pong))
            }
            return true
        }
        switch PacketType(rawValue: header.type) {
        case .reply, .replyWithDescriptors:
            if UpstreamSerial.isOurs(header.serial) {
                await answered(packet)
            } else {
                state.withLock { $0.passedCalls = max($0.passedCalls - 1, 0) }
                await handOn(Self.withoutDescriptors(packet))
            }
        case .message, .stream, .streamHole: await handOn(packet)
        // It has nothing to ask of us.
        case .call, .callWithDescriptors, nil:
            await finish(.garbled(path: path, detail: "a packet of type \(header.type)"))
            return false
        }
        return true
    }

    /// Descriptors do not pass, and a reply that came with some is worth nothing without them.
    private static func withoutDescriptors(_ packet: Packet) -> Packet {
        guard packet.header.type == PacketType.replyWithDescriptors.rawValue else { return packet }
        return .failure(packet.header, .descriptorsDoNotPass)
    }

    private func handOn(_ packet: Packet) async {
        state.withLock { $0.isDelivering = true }
        await deliver(packet)
        heard.note()
        state.withLock { $0.isDelivering = false }
    }

    private func answered(_ packet: Packet) async {
        let waiter = state.withLock { state -> Waiter? in
            let waiter = state.waiters.removeValue(forKey: packet.header.serial)
            if case .abandoned = waiter { state.abandoned -= 1 }
            return waiter
        }
        switch waiter {
        case .call(let continuation, let timer):
            timer?.cancel()
            continuation.resume(returning: .success(packet))
        case .inOrder(let body): await body(.success(packet))
        case .abandoned, nil: break
        }
    }

    // The answer may still come; its serial is taken until then.
    private func abandon(_ serial: UInt32, _ seconds: Int64) {
        let (waiter, isDead) = state.withLock { state -> (Waiter?, Bool) in
            guard case .call = state.waiters[serial] else { return (nil, false) }
            state.abandoned += 1
            let waiter = state.waiters.updateValue(.abandoned, forKey: serial)
            return (waiter, state.abandoned > UpstreamLimits.abandonedMax)
        }
        if case .call(let continuation, _) = waiter {
            continuation.resume(returning: .failure(.silent(path: path, seconds: seconds)))
        }
        if isDead { close() }
    }

    private func finish(_ fault: UpstreamFault) async {
        let waiters = state.withLock { state -> [Waiter]? in
            guard state.end == nil else { return nil }
            state.end = fault
            defer { state.waiters = [:] }
            return Array(state.waiters.values)
        }
        guard let waiters else { return }
        close()
        for waiter in waiters {
            switch waiter {
            case .call(let continuation, let timer):
                timer?.cancel()
                continuation.resume(returning: .failure(fault))
            case .inOrder(let body): await body(.failure(fault))
            case .abandoned: break
            }
        }
        ended(fault)
    }

    // A peer that does not read gets no more of what it does not need.
    private func send(_ packet: Packet) {
        guard channel.channel.isWritable else { return }
        channel.channel.writeAndFlush(packet.buffer, promise: nil)
    }

    // Before a first answer is due nothing had to come.
    private func noteDue(_ state: borrowing State) {
        if state.passedCalls == 0, state.waiters.count == state.abandoned { heard.note() }
    }

    // While an answer is due, silence is asked about; in the end it is death.
    private func lookAlive() {
        let isDue = state.withLock { state in
            !state.isDelivering && state.end == nil
                && (state.passedCalls > 0 || state.waiters.count > state.abandoned)
        }
        let silence = heard.silence
        guard isDue, silence >= .seconds(UpstreamLimits.pingSeconds) else { return }
        guard silence < .seconds(UpstreamLimits.silenceSeconds) else {
            Task {
                await finish(.silent(path: path, seconds: UpstreamLimits.silenceSeconds))
            }
            return
        }
        send(.keepalive(KeepaliveProcedure.ping))
    }
}

/// When a byte came last.
final class HeardAt: Sendable {
    private let time = Mutex(NIODeadline.now())

    func note() { time.withLock { $0 = .now() } }

    var silence: TimeAmount { time.withLock { .now() - $0 } }
}

extension WireError {
    /// What would need a descriptor of the other side's.
    static let descriptorsDoNotPass = WireError(
        code: WireErrorCode.argumentUnsupported, domain: WireErrorDomain.remote,
        prefix: "argument unsupported: ",
        detail: "file descriptors do not pass to the libvirtd behind nbdpull")
}
