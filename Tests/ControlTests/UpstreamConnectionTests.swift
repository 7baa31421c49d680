import Foundation
import LibvirtProtocol
import NIOCore
import Testing

@testable import Control

@Suite("Upstream: one connection to libvirtd, however it behaves", .timeLimit(.minutes(1)))
struct UpstreamConnectionTests {
    private let fixture: ControlFixture
    private let delivered = Delivered()

    init() throws { fixture = try ControlFixture() }

    private var path: String { fixture.root + "/libvirtd" }

    private func open(uri: String = "") async throws(UpstreamFault) -> UpstreamConnection {
        let delivered = delivered
        return try await UpstreamConnection.open(
            UpstreamSettings(socketPath: path), uri: uri, flags: 1,
            deliver: { delivered.add($0) }, ended: { delivered.end($0) })
    }

    private func call(_ procedure: Procedure, serial: UInt32, _ body: [UInt8] = []) -> Packet {
        Packet(
            PacketHeader(procedure: procedure.rawValue, type: .call, serial: serial), body: body)
    }

    @Test("a client's packets pass with their serials, and what comes back is handed on in order")
    func passes() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in
            let stream = PacketHeader(
                procedure: 209, type: .stream, serial: packet.header.serial, status: .more)
            return .packets([
                Packet(packet.header.reply(.ok)), Packet(stream, body: [1, 2, 3, 4]),
                Packet(PacketHeader(procedure: 318, type: .message), body: [9, 9, 9, 9]),
            ])
        }
        let connection = try await open(uri: "qemu:///system")
        try await connection.pass(call(Procedure(rawValue: 209), serial: 77)).get()
        #expect(try await eventually { delivered.packets.count == 3 })
        #expect(delivered.packets.map(\.header.serial) == [77, 77, 0])
        #expect(delivered.packets.map(\.header.type) == [1, 3, 2])
        let opened = try #require(libvirtd.calls.first { $0.header.procedure == 1 })
        var arguments = XDRReader(opened.body)
        #expect(try arguments.optionalString() == "qemu:///system")
        #expect(try arguments.uint() == 1)
    }

    @Test("calls of the door get their own answers while the client uses the same procedures")
    func ownCalls() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in .results(packet.body) }
        let connection = try await open()
        for round in UInt8(0)..<20 {
            try await connection.pass(call(.getVersion, serial: UInt32(round), [0, 0, 0, 1])).get()
            let reply = try await connection.call(.getVersion, [round, 0, 0, 0])
            #expect(reply.body == [round, 0, 0, 0])
        }
        #expect(try await eventually { delivered.packets.count == 20 })
        #expect(delivered.packets.allSatisfy { $0.body == [0, 0, 0, 1] })
        #expect(libvirtd.count(.getVersion) == 40)
    }

    @Test("an answer that is late is dropped, and the connection goes on")
    func late() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in
            packet.header.procedure == Procedure.getType.rawValue
                ? .later([1, 1, 1, 1], milliseconds: 1500) : .results([2, 2, 2, 2])
        }
        let connection = try await open()
        await #expect(throws: UpstreamFault.silent(path: path, seconds: 1)) {
            try await connection.call(.getType, [], seconds: 1)
        }
        try await Task.sleep(for: .milliseconds(800))
        #expect(try await connection.call(.getVersion, []).body == [2, 2, 2, 2])
        #expect(delivered.packets.isEmpty)
        #expect(libvirtd.count(.getType) == 1)
    }

    @Test("whoever waits is told when libvirtd dies, and so is the client")
    func dies() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { _, _ in .silence }
        let connection = try await open()
        async let waiting = connection.reply(to: .getType, [], seconds: nil)
        #expect(try await eventually { libvirtd.count(.getType) == 1 })
        try await libvirtd.die()
        let reply = await waiting
        #expect(throws: UpstreamFault.closed(path: path)) { try reply.get() }
        #expect(try await eventually { delivered.faults == [.closed(path: path)] })
        #expect(!connection.isOpen)
        await #expect(throws: UpstreamFault.closed(path: path)) {
            try await connection.call(.getType, [])
        }
    }

    @Test(
        "what cannot be understood ends the connection, whatever it is",
        arguments: [
            [0, 0, 0, 1, 0, 0, 0, 0], [0xFF, 0xFF, 0xFF, 0xFF], [0, 0, 0, 27],
            Array("HTTP/1.1 200 OK\r\n\r\n and so on".utf8),
            Packet(PacketHeader(procedure: 1, type: .call, serial: 5)).bytes,
            [0, 0, 0, 28] + [UInt8](repeating: 0xEE, count: 24),
        ] as [[UInt8]])
    func garbage(bytes: [UInt8]) async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { _, _ in .raw(bytes) }
        let connection = try await open()
        await #expect(throws: UpstreamFault.self) {
            try await connection.call(.getType, [], seconds: 20)
        }
        #expect(try await eventually { !connection.isOpen && !delivered.faults.isEmpty })
        #expect(delivered.faults.count == 1)
        #expect(libvirtd.count(.getType) == 1)
    }

    @Test("a reply that nobody asked for, and errors that cannot be read, harm nobody")
    func strays() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in
            var stray = packet.header.reply(.ok)
            stray.serial = UpstreamSerial.first + 12_345
            return .packets([Packet(stray), Packet(packet.header.reply(.error), body: [1, 2, 3])])
        }
        let connection = try await open()
        await #expect(throws: UpstreamFault.self) { try await connection.call(.getType, []) }
        #expect(connection.isOpen)
        #expect(delivered.packets.isEmpty)
        #expect(libvirtd.count(.getType) == 1)
    }

    @Test("a reply with descriptors becomes an error: they do not pass")
    func descriptors() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in
            var header = packet.header.reply(.ok)
            header.type = PacketType.replyWithDescriptors.rawValue
            return .packets([Packet(header, body: [0, 0, 0, 1])])
        }
        let connection = try await open()
        try await connection.pass(call(Procedure(rawValue: 384), serial: 3)).get()
        #expect(try await eventually { delivered.packets.count == 1 })
        #expect(delivered.packets.first?.error == .descriptorsDoNotPass)
        #expect(delivered.packets.first?.header.type == PacketType.reply.rawValue)
        #expect(libvirtd.calls.count == 3)
    }

    @Test("a PING of libvirtd's is answered, and never handed on")
    func ping() async throws {
        let pongs = Delivered()
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in
            if packet.header.program == LibvirtProgram.keepalive { pongs.add(packet) }
            return .silence
        }
        let connection = try await open()
        libvirtd.send(.keepalive(KeepaliveProcedure.ping))
        #expect(try await eventually { pongs.packets.count == 1 })
        #expect(pongs.packets.first?.header.procedure == KeepaliveProcedure.pong)
        #expect(delivered.packets.isEmpty)
        connection.close()
    }

    @Test("a libvirtd that hangs from the start is given up in good time")
    func mute() async throws {
        let libvirtd = try await ScriptedLibvirtd(path, isMute: true) { _, _ in .silence }
        await #expect(
            throws: UpstreamFault.silent(path: path, seconds: UpstreamLimits.openSeconds)
        ) { try await open() }
        #expect(libvirtd.count(.authList) == 1)
    }

    @Test("a socket that is not there is named with the reason")
    func missing() async throws {
        await #expect(
            throws: UpstreamFault.unreachable(path: path, detail: "No such file or directory")
        ) { try await open() }
    }

    @Test("packets of libvirt's full size pass both ways, byte for byte")
    func large() async throws {
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in .results(packet.body) }
        let connection = try await open()
        let body = (0..<(32 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        try await connection.pass(call(Procedure(rawValue: 208), serial: 1, body)).get()
        #expect(try await eventually { delivered.packets.count == 1 })
        #expect(delivered.packets.first?.body == body)
        #expect(libvirtd.calls.count == 3)
    }

    @Test("nothing more is read from libvirtd while the client has no room")
    func backpressure() async throws {
        let piece = [UInt8](repeating: 1, count: 1 << 20)
        let libvirtd = try await ScriptedLibvirtd(path) { packet, _ in .results([]) }
        let taken = Delivered()
        let gate = LateValue<Bool>()
        let connection = try await UpstreamConnection.open(
            UpstreamSettings(socketPath: path), uri: "", flags: 0,
            deliver: { packet in
                taken.add(packet)
                _ = await gate.value(within: .seconds(30))
            })
        for _ in 0..<64 {
            libvirtd.send(
                Packet(PacketHeader(procedure: 209, type: .stream, serial: 1), body: piece))
        }
        #expect(try await eventually { taken.packets.count == 1 })
        try await Task.sleep(for: .milliseconds(300))
        #expect(taken.packets.count == 1)
        gate.set(true)
        #expect(try await eventually { taken.packets.count == 64 })
        connection.close()
    }
}
