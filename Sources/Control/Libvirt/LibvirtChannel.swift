import LibvirtProtocol
import NIOCore

/// One connection on its event loop: bytes to its ``ConnectionMachine``, calls to tasks, replies to
/// the socket, each within its bounds.
///
/// A call never holds the loop, so that PINGs are answered whatever a call waits for.
final class LibvirtChannel: ChannelDuplexHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let door: LibvirtDoor
    private let number: UInt64
    private let session: LibvirtSession
    private let channel: any Channel
    private var machine = ConnectionMachine()
    private var unsentBytes = 0
    /// Bytes on their way to the libvirtd behind the door.
    private var passingBytes = 0
    private var isReadHeld = false
    private var isEnding = false
    /// Packets are being taken: what comes of one must not take the next inside.
    private var isProceeding = false
    /// Told when the connection is over.
    var onFinish: () -> Void = {}
    private var clock: RepeatedTask?
    private let began = NIODeadline.now()
    private var lastHeard = NIODeadline.now()
    private var packetBegan: NIODeadline?
    private var unsentSince: NIODeadline?

    init(door: LibvirtDoor, number: UInt64, session: LibvirtSession, channel: any Channel) {
        self.door = door
        self.number = number
        self.session = session
        self.channel = channel
    }

    // MARK: What the socket tells

    func handlerAdded(context: ChannelHandlerContext) {
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        clock = channel.eventLoop.scheduleRepeatedTask(
            initialDelay: .seconds(1), delay: .seconds(1)
        ) { _ in bound.value.tick() }
    }

    func channelInactive(context: ChannelHandlerContext) {
        finish()
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) { finish() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        context.close(promise: nil)
    }

    func read(context: ChannelHandlerContext) {
        guard takesBytes else {
            isReadHeld = true
            return
        }
        context.read()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        lastHeard = .now()
        machine.append(unwrapInboundIn(data).readableBytesView)
        proceed()
    }

    private var takesBytes: Bool {
        machine.takesCalls && unsentBytes <= LibvirtLimits.unsentBytesToRead && !isEnding
            && passingBytes <= UpstreamLimits.unsentBytesMax
    }

    // MARK: Packets

    private func proceed() {
        // A write that leaves at once ends here again, and so would as many calls deep as there are
        // packets.
        guard !isProceeding else { return }
        isProceeding = true
        defer { isProceeding = false }
        while !isEnding, unsentBytes <= LibvirtLimits.unsentBytesToRead,
            passingBytes <= UpstreamLimits.unsentBytesMax,
            let action = machine.next()
        {
            packetBegan = nil
            switch action {
            case .send(let packet): send(packet)
            case .call(let call): begin(call)
            case .unserved(let packet): pass(packet)
            case .hangUp: end()
            }
        }
        packetBegan = machine.isInsidePacket ? packetBegan ?? .now() : nil
        guard isReadHeld, takesBytes else { return }
        isReadHeld = false
        // What it sent while nobody read is heard only now.
        lastHeard = .now()
        if packetBegan != nil { packetBegan = .now() }
        channel.read()
    }

    private func begin(_ call: IncomingCall) {
        // The client starts to send PINGs when it hears that they are understood.
        if call.entry.procedure == .supportsFeature, asksForKeepalive(call) {
            machine.learnedKeepalive()
        }
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        let (door, session, loop) = (door, session, channel.eventLoop)
        door.callBegan()
        Task {
            let reply = await UpstreamDoor.answer(call, session, door.context)
            door.callEnded()
            loop.execute { bound.value.answer(call, reply) }
        }
    }

    private func asksForKeepalive(_ call: IncomingCall) -> Bool {
        var arguments = call.arguments
        return (try? arguments.int()) == LibvirtFeature.keepalive
    }

    /// Nil: it has been answered already.
    private func answer(_ call: IncomingCall, _ reply: Packet?) {
        machine.finished(bytes: call.packet.body.count)
        guard !isEnding else { return }
        guard let reply else { return proceed() }
        let isGood = reply.header.status == PacketStatus.ok.rawValue
        if call.entry.procedure == .open, isGood { opened(call) }
        send(reply)
        if call.entry.procedure == .close {
            machine.closed()
            end()
        }
        proceed()
    }

    private func opened(_ call: IncomingCall) {
        var arguments = call.arguments
        _ = try? arguments.optionalString()
        let isReadOnly = ((try? arguments.uint()) ?? 1) & 1 != 0
        session.isReadOnly = isReadOnly
        machine.opened(
            isReadOnly: isReadOnly,
            packetBytesMax: session.upstream == nil
                ? LibvirtLimits.packetBytesMax : UpstreamLimits.packetBytesMax)
        door.opened(number)
    }

    // MARK: What is libvirtd's

    /// What is not served here goes to the libvirtd behind the door, in the order in which it
    /// comes.
    private func pass(_ packet: Packet) {
        guard let upstream = session.upstream else {
            if let error = WireError.unserved(packet) { send(.failure(packet.header, error)) }
            return
        }
        switch UpstreamPassage(packet) {
        case .refused(let error): refuse(packet, error)
        case .free:
            let count = PacketHeader.byteCount + packet.body.count
            passingBytes += count
            pass(packet, to: upstream, count)
        case .read(let procedure): read(packet, procedure, upstream)
        }
    }

    private func refuse(_ packet: Packet, _ error: WireError) {
        // A part of a stream is answered by nothing.
        if WireError.unserved(packet) != nil { send(.failure(packet.header, error)) }
    }

    private func pass(_ packet: Packet, to upstream: UpstreamConnection, _ count: Int) {
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        upstream.pass(packet).hop(to: channel.eventLoop).whenComplete { _ in
            bound.value.passed(count)
        }
    }

    /// XML is not read on the loop, which others need: later calls overtake this one.
    private func read(
        _ packet: Packet, _ procedure: Procedure, _ upstream: UpstreamConnection
    ) {
        let count = PacketHeader.byteCount + packet.body.count
        passingBytes += count
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        let (context, loop) = (door.context, channel.eventLoop)
        Task {
            let result = await UpstreamReading(
                packet: packet, procedure: procedure, context: context, connection: upstream
            ).result()
            loop.execute { bound.value.wasRead(packet, result, upstream, count) }
        }
    }

    private func wasRead(
        _ packet: Packet, _ result: Result<Packet, WireError>, _ upstream: UpstreamConnection,
        _ count: Int
    ) {
        switch result {
        case .success(let packet) where !isEnding: pass(packet, to: upstream, count)
        case .failure(let error) where !isEnding:
            refuse(packet, error)
            passed(count)
        case .success, .failure: passed(count)
        }
    }

    private func passed(_ count: Int) {
        passingBytes -= count
        proceed()
    }

    /// Sends what libvirtd has sent; succeeds when it has left.
    func deliver(_ packet: Packet) -> EventLoopFuture<Void> {
        guard !isEnding else { return channel.eventLoop.makeSucceededVoidFuture() }
        return send(packet)
    }

    /// The libvirtd behind the door is gone.
    func hangUp() { end() }

    // MARK: What is sent

    /// Sends an event; a peer that does not read them goes.
    func sendEvent(_ packet: Packet) {
        guard !isEnding else { return }
        guard unsentBytes <= LibvirtLimits.unsentBytesForEvents else { return end(atOnce: true) }
        send(packet)
    }

    @discardableResult
    private func send(_ packet: Packet) -> EventLoopFuture<Void> {
        let buffer = packet.buffer
        let count = buffer.readableBytes
        guard unsentBytes + count <= LibvirtLimits.unsentBytesMax else {
            end(atOnce: true)
            return channel.eventLoop.makeSucceededVoidFuture()
        }
        if unsentBytes == 0 { unsentSince = .now() }
        unsentBytes += count
        let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
        let written = channel.writeAndFlush(buffer)
        written.whenComplete { _ in bound.value.sent(count) }
        return written
    }

    private func sent(_ count: Int) {
        unsentBytes -= count
        unsentSince = unsentBytes == 0 ? nil : .now()
        proceed()
    }

    // MARK: Time

    private func tick() {
        let now = NIODeadline.now()
        if machine.phase == .greeting, now - began > .seconds(Int64(LibvirtLimits.greetingSeconds))
        {
            return end(atOnce: true)
        }
        if let packetBegan, takesBytes,
            now - packetBegan > .seconds(Int64(LibvirtLimits.packetSeconds))
        {
            return end(atOnce: true)
        }
        if let unsentSince, now - unsentSince > .seconds(Int64(LibvirtLimits.unsentSeconds)) {
            return end(atOnce: true)
        }
        // A client that is not read cannot be heard.
        guard takesBytes else { return }
        guard now - lastHeard >= .seconds(Int64(LibvirtLimits.keepaliveSeconds)) else { return }
        // The next PING is due after as much silence again.
        lastHeard = now
        switch machine.silent() {
        case .send(let packet): send(packet)
        case .hangUp: end(atOnce: true)
        case .call, .unserved, nil: break
        }
    }

    // MARK: The end

    /// Closes the connection, by default when what is unsent has gone out.
    private func end(atOnce: Bool = false) {
        guard !isEnding || atOnce else { return }
        isEnding = true
        if atOnce || unsentBytes == 0 { return channel.close(promise: nil) }
        let channel = channel
        // NIO writes in order: this one's completion is that of all before it.
        channel.writeAndFlush(channel.allocator.buffer(capacity: 0)).whenComplete { _ in
            channel.close(promise: nil)
        }
    }

    private func finish() {
        isEnding = true
        clock?.cancel()
        clock = nil
        session.close()
        door.left(number)
        onFinish()
        onFinish = {}
        machine = ConnectionMachine()
    }
}
