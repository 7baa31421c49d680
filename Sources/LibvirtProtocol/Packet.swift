/// The kind of a packet.
package enum PacketType: UInt32, Sendable, Hashable, CaseIterable {
    case call = 0
    case reply = 1
    /// Nobody answers it: events, keepalive.
    case message = 2
    case stream = 3
    /// A call whose descriptors came with it.
    case callWithDescriptors = 4
    case replyWithDescriptors = 5
    case streamHole = 6
}

/// The state of a call.
package enum PacketStatus: UInt32, Sendable, Hashable, CaseIterable {
    case ok = 0
    case error = 1
    /// More of the stream follows.
    case more = 2
}

/// A program of libvirt's protocols and its version.
package enum LibvirtProgram {
    /// The calls and events of libvirt's remote protocol.
    package static let remote: UInt32 = 0x2000_8086
    /// Those of libvirt's programs for single hypervisors.
    package static let qemu: UInt32 = 0x2000_8087
    /// PING and PONG.
    package static let keepalive: UInt32 = 0x6B65_6570
    /// The one version there is of each.
    package static let version: UInt32 = 1
}

/// The procedures of the keepalive program.
package enum KeepaliveProcedure {
    package static let ping: Int32 = 1
    package static let pong: Int32 = 2
}

/// The six words in front of every body.
package struct PacketHeader: Sendable, Hashable {
    /// The header with the length in front of it, in bytes.
    package static let byteCount = 28

    package var program: UInt32
    package var version: UInt32
    package var procedure: Int32
    /// As it was sent; ``PacketType`` names those that there are.
    package var type: UInt32
    /// Chosen by the caller and repeated in the reply.
    package var serial: UInt32
    /// As it was sent; ``PacketStatus`` names those that there are.
    package var status: UInt32

    package init(
        program: UInt32 = LibvirtProgram.remote, version: UInt32 = LibvirtProgram.version,
        procedure: Int32, type: PacketType, serial: UInt32 = 0, status: PacketStatus = .ok
    ) {
        self.program = program
        self.version = version
        self.procedure = procedure
        self.type = type.rawValue
        self.serial = serial
        self.status = status.rawValue
    }

    /// Reads the six words.
    package init(_ reader: inout XDRReader) throws(XDRError) {
        program = try reader.uint()
        version = try reader.uint()
        procedure = try reader.int()
        type = try reader.uint()
        serial = try reader.uint()
        status = try reader.uint()
    }

    /// The header of the reply to this call.
    package func reply(_ status: PacketStatus) -> PacketHeader {
        var header = self
        header.type = PacketType.reply.rawValue
        header.status = status.rawValue
        return header
    }
}

/// One packet: header and body, without the length.
package struct Packet: Sendable, Hashable {
    package var header: PacketHeader
    package var body: [UInt8]

    package init(_ header: PacketHeader, body: [UInt8] = []) {
        self.header = header
        self.body = body
    }

    /// The packet as it is sent, length first.
    package var bytes: [UInt8] {
        var writer = XDRWriter()
        writer.count(PacketHeader.byteCount + body.count)
        writer.uint(header.program)
        writer.uint(header.version)
        writer.int(header.procedure)
        writer.uint(header.type)
        writer.uint(header.serial)
        writer.uint(header.status)
        return writer.bytes + body
    }

    /// PING, or the PONG that answers it.
    package static func keepalive(_ procedure: Int32) -> Packet {
        Packet(
            PacketHeader(program: LibvirtProgram.keepalive, procedure: procedure, type: .message))
    }
}
