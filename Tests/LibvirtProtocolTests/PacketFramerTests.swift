import LibvirtProtocol
import Testing

/// A stream of bytes, cut anywhere, is the same packets.
@Suite struct PacketFramerTests {
    private let packets = [
        Packet(PacketHeader(procedure: 66, type: .call, serial: 1)),
        Packet(PacketHeader(procedure: 1, type: .call, serial: 2), body: [1, 2, 3, 4]),
        Packet.keepalive(KeepaliveProcedure.ping),
    ]

    private func framed(_ framer: inout PacketFramer) throws -> [Packet] {
        var found: [Packet] = []
        while let packet = try framer.next() { found.append(packet) }
        return found
    }

    @Test("packets are the same in pieces of any size", arguments: 1...92)
    func pieces(size: Int) throws {
        let stream = packets.flatMap(\.bytes)
        var framer = PacketFramer()
        var found: [Packet] = []
        for start in stride(from: 0, to: stream.count, by: size) {
            framer.append(stream[start..<min(start + size, stream.count)])
            found += try framed(&framer)
        }
        #expect(found == packets)
        #expect(!framer.isInsidePacket)
    }

    @Test("the header is written as it is read")
    func header() {
        #expect(
            packets[1].bytes == [
                0, 0, 0, 32, 0x20, 0, 0x80, 0x86, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2,
                0, 0, 0, 0, 1, 2, 3, 4,
            ])
        #expect(
            packets[2].bytes == [
                0, 0, 0, 28, 0x6B, 0x65, 0x65, 0x70, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0,
                0, 0, 0, 0, 0,
            ])
    }

    @Test(
        "P6: a length that no packet can have is refused as soon as it is known",
        arguments: [0, 1, 4, 27, 65_537, 0x7FFF_FFFF, UInt32.max])
    func lengths(length: UInt32) throws {
        var writer = XDRWriter()
        writer.uint(length)
        var framer = PacketFramer(bytesMax: 65_536)
        framer.append(writer.bytes.dropLast())
        #expect(try framer.next() == nil)
        framer.append(writer.bytes.suffix(1))
        #expect(throws: FramingError.self) { _ = try framer.next() }
    }

    @Test("a packet of the greatest length is taken")
    func longest() throws {
        let packet = Packet(
            PacketHeader(procedure: 1, type: .call),
            body: [UInt8](repeating: 7, count: 1024 - PacketHeader.byteCount))
        var framer = PacketFramer(bytesMax: 1024)
        framer.append(packet.bytes)
        #expect(try framer.next() == packet)
        #expect(try framer.next() == nil)
    }

    @Test("a packet that has begun is known to have")
    func inside() throws {
        var framer = PacketFramer()
        #expect(!framer.isInsidePacket)
        framer.append([0])
        #expect(try framer.next() == nil)
        #expect(framer.isInsidePacket)
    }
}
