import LibvirtProtocol
import NIOCore
import Synchronization

/// Cuts what libvirtd sends into packets.
final class UpstreamFraming: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = Packet

    private var framer = PacketFramer(bytesMax: UpstreamLimits.packetBytesMax)
    /// Told of every byte that comes, also of those of a packet that is not complete.
    private let heard: @Sendable () -> Void

    init(heard: @escaping @Sendable () -> Void) { self.heard = heard }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        heard()
        framer.append(unwrapInboundIn(data).readableBytesView)
        do throws(FramingError) {
            while let packet = try framer.next() { context.fireChannelRead(wrapInboundOut(packet)) }
        } catch {
            context.fireErrorCaught(error)
            context.close(promise: nil)
        }
    }
}

extension Packet {
    /// The packet as it is sent, in a buffer of its own.
    var buffer: ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: PacketHeader.byteCount + body.count)
        buffer.writeInteger(UInt32(clamping: PacketHeader.byteCount + body.count))
        buffer.writeInteger(header.program)
        buffer.writeInteger(header.version)
        buffer.writeInteger(header.procedure)
        buffer.writeInteger(header.type)
        buffer.writeInteger(header.serial)
        buffer.writeInteger(header.status)
        buffer.writeBytes(body)
        return buffer
    }
}
