import Foundation
import LibvirtProtocol
import NIOCore
import NIOPosix
import Synchronization

@testable import Control

/// A libvirtd that says what a test tells it to, on a socket of its own.
final class ScriptedLibvirtd: Sendable {
    /// What is done about a call.
    enum Answer: Sendable {
        case results([UInt8])
        case error(Int32, String)
        case packets([Packet])
        /// Bytes as they are.
        case raw([UInt8])
        case silence
        case hangUp
        /// Nothing more is read from the client.
        case deafness
        /// The results after so many milliseconds.
        case later([UInt8], milliseconds: Int)
    }

    typealias Script = @Sendable (Packet, ScriptedLibvirtd) -> Answer

    let path: String
    private let script: Script
    private let isMute: Bool
    private let listener = Mutex<(any Channel)?>(nil)
    private let clients = Mutex<[any Channel]>([])
    private let heard = Mutex<[Packet]>([])

    /// `script` answers what is no part of opening a connection; one that is mute answers nothing.
    init(_ path: String, isMute: Bool = false, _ script: @escaping Script) async throws {
        self.path = path
        self.isMute = isMute
        self.script = script
        try await listen()
    }

    deinit {
        listener.withLock { $0 }?.close(promise: nil)
        for client in clients.withLock({ $0 }) { client.close(promise: nil) }
    }

    /// The calls so far.
    var calls: [Packet] { heard.withLock { $0 } }

    func count(_ procedure: Procedure) -> Int {
        calls.count { $0.header.procedure == procedure.rawValue }
    }

    func listen() async throws {
        _ = try? SystemCalls.unlink(path)
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .childChannelInitializer { [weak self] channel in
                guard let self else { return channel.close() }
                clients.withLock { $0.append(channel) }
                return channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(ScriptedConnection(self))
                }
            }
            .bind(unixDomainSocketPath: path).get()
        listener.withLock { $0 = channel }
    }

    /// Dies: its socket and its connections go.
    func die() async throws {
        try await listener.withLock { $0 }?.close()
        for client in clients.withLock({ $0 }) { try? await client.close() }
        clients.withLock { $0 = [] }
        _ = try? SystemCalls.unlink(path)
    }

    /// Sends to every client.
    func send(_ packet: Packet) {
        for client in clients.withLock({ $0 }) {
            client.writeAndFlush(packet.buffer, promise: nil)
        }
    }

    fileprivate func answer(_ packet: Packet) -> Answer {
        if packet.header.program == LibvirtProgram.keepalive {
            return script(packet, self)
        }
        heard.withLock { $0.append(packet) }
        if isMute { return .silence }
        switch Procedure(rawValue: packet.header.procedure) {
        case .authList: return .results([0, 0, 0, 1, 0, 0, 0, 0])
        case .open: return .results([])
        default: return script(packet, self)
        }
    }
}

private final class ScriptedConnection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let libvirtd: ScriptedLibvirtd
    private var framer = PacketFramer(bytesMax: 64 << 20)

    init(_ libvirtd: ScriptedLibvirtd) { self.libvirtd = libvirtd }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        framer.append(unwrapInboundIn(data).readableBytesView)
        while let packet = try? framer.next() { answer(packet, context.channel) }
    }

    private func answer(_ packet: Packet, _ channel: any Channel) {
        let header = packet.header
        switch libvirtd.answer(packet) {
        case .results(let body): send(Packet(header.reply(.ok), body: body), channel)
        case .error(let code, let text):
            send(
                .failure(header, WireError(code: code, domain: 10, prefix: "", detail: text)),
                channel)
        case .packets(let packets): for packet in packets { send(packet, channel) }
        case .raw(let bytes): channel.writeAndFlush(ByteBuffer(bytes: bytes), promise: nil)
        case .silence: break
        case .hangUp: channel.close(promise: nil)
        case .deafness: _ = channel.setOption(.autoRead, value: false)
        case .later(let body, let milliseconds):
            channel.eventLoop.scheduleTask(in: .milliseconds(Int64(milliseconds))) {
                channel.writeAndFlush(Packet(header.reply(.ok), body: body).buffer, promise: nil)
            }
        }
    }

    private func send(_ packet: Packet, _ channel: any Channel) {
        channel.writeAndFlush(packet.buffer, promise: nil)
    }
}

/// What was handed on, in order.
final class Delivered: Sendable {
    private let list = Mutex<[Packet]>([])
    private let ends = Mutex<[UpstreamFault]>([])
    var packets: [Packet] { list.withLock { $0 } }
    var faults: [UpstreamFault] { ends.withLock { $0 } }
    func add(_ packet: Packet) { list.withLock { $0.append(packet) } }
    func end(_ fault: UpstreamFault) { ends.withLock { $0.append(fault) } }
}
