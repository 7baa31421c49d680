import LibvirtProtocol
import NIOCore
import NIOPosix
import Synchronization

@testable import Control

/// A peer of the libvirt door that says whatever a test wants, and remembers what it hears.
final class DoorPeer: Sendable {
    private struct Heard {
        var framer = PacketFramer(bytesMax: LibvirtLimits.packetBytesMax)
        var packets: [Packet] = []
        var isOver = false
    }

    private final class Ear: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        let peer: DoorPeer

        init(_ peer: DoorPeer) { self.peer = peer }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let bytes = unwrapInboundIn(data).readableBytesView
            peer.heard.withLock { heard in
                heard.framer.append(bytes)
                while let packet = try? heard.framer.next() { heard.packets.append(packet) }
            }
        }

        func channelInactive(context: ChannelHandlerContext) {
            peer.heard.withLock { $0.isOver = true }
        }

        func errorCaught(context: ChannelHandlerContext, error: any Error) {
            context.close(promise: nil)
        }
    }

    private let heard = Mutex(Heard())
    private let serial = Mutex(UInt32(0))
    private let channel = Mutex<(any Channel)?>(nil)

    /// Connects; `reads` false takes nothing that is sent to it.
    init(_ path: String, reads: Bool = true) async throws {
        let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .channelOption(.autoRead, value: reads)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Ear(self))
                }
            }
            .connect(unixDomainSocketPath: path).get()
        self.channel.withLock { $0 = channel }
    }

    deinit { channel.withLock { $0 }?.close(promise: nil) }

    /// Whether the door has hung up.
    var isOver: Bool { heard.withLock { $0.isOver } }

    var packets: [Packet] { heard.withLock { $0.packets } }

    func close() async { try? await channel.withLock { $0 }?.close().get() }

    func send(_ bytes: [UInt8]) async {
        guard let channel = channel.withLock({ $0 }) else { return }
        try? await channel.writeAndFlush(channel.allocator.buffer(bytes: bytes)).get()
    }

    /// Sends a call and returns its serial.
    @discardableResult
    func begin(_ procedure: Procedure, _ body: [UInt8] = []) async -> UInt32 {
        let number = serial.withLock { serial in
            serial += 1
            return serial
        }
        await send(
            Packet(
                PacketHeader(procedure: procedure.rawValue, type: .call, serial: number),
                body: body
            ).bytes)
        return number
    }

    func reply(to serial: UInt32) -> Packet? {
        packets.first { $0.header.serial == serial && $0.header.type == PacketType.reply.rawValue }
    }

    /// Makes a call; nil when the door hangs up instead of answering.
    func call(_ procedure: Procedure, _ body: [UInt8] = []) async throws -> Packet? {
        let serial = await begin(procedure, body)
        _ = try await eventually { reply(to: serial) != nil || isOver }
        return reply(to: serial)
    }

    /// The error that a call is answered by.
    func failure(_ procedure: Procedure, _ body: [UInt8] = []) async throws -> WireError? {
        guard let reply = try await call(procedure, body),
            reply.header.status == PacketStatus.error.rawValue
        else { return nil }
        return try WireError(body: reply.body)
    }

    /// Opens the connection.
    func open(isReadOnly: Bool = false) async throws {
        _ = try await call(
            .open,
            LibvirtCalls.reply {
                $0.optionalString("nbdpull:///system")
                $0.uint(isReadOnly ? 1 : 0)
            }.bytes)
    }

    /// Messages of a procedure.
    func messages(_ procedure: Procedure) -> [Packet] {
        packets.filter {
            $0.header.type == PacketType.message.rawValue
                && $0.header.procedure == procedure.rawValue
        }
    }
}
