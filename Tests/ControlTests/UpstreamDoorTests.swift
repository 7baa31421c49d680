import Foundation
import LibvirtProtocol
import NIOCore
import ServerInterface
import ServiceLifecycle
import Testing

@testable import Control

@Suite("Upstream: the door with a libvirtd behind it", .timeLimit(.minutes(1)))
struct UpstreamDoorTests {
    private let fixture: ControlFixture
    private let delivered = Delivered()
    private static let uuid = "11111111-2222-4333-8444-555555555501"
    private static let other = WireDomain(
        name: "other", uuid: UUIDText.bytes("11111111-2222-4333-8444-555555555509"), id: 7)

    init() throws { fixture = try ControlFixture() }

    private var libvirtdPath: String { fixture.root + "/libvirtd" }
    private var doorPath: String { fixture.root + "/door" }

    /// A domain of ours that libvirtd knows under another name and as number 3, and one it does not
    /// know.
    private static let machine = WireDomain(
        name: "machine", uuid: UUIDText.bytes(uuid), id: 3)

    /// Answers as a libvirtd with two machines would.
    private static func script(
        _ packet: Packet, _ libvirtd: ScriptedLibvirtd
    ) -> ScriptedLibvirtd.Answer {
        var arguments = XDRReader(packet.body)
        switch Procedure(rawValue: packet.header.procedure) {
        case .listAllDomains:
            _ = try? arguments.int()
            let flags = (try? arguments.uint()) ?? 0
            let all = flags & 2 == 0 ? [machine, other] : []
            let listed = flags & (1 << 14) != 0 ? [] : all
            return .results(
                LibvirtCalls.reply {
                    $0.domains(listed)
                    $0.uint(UInt32(listed.count))
                }.bytes)
        case .domainLookupByName:
            let name = try? arguments.string()
            guard let found = [machine, other].first(where: { $0.name == name }) else {
                return .error(42, "Domain not found")
            }
            return .results(LibvirtCalls.reply { $0.domain(found) }.bytes)
        case .domainGetState:
            let domain = try? arguments.domain()
            guard domain?.uuid == machine.uuid || domain?.uuid == other.uuid else {
                return .error(42, "Domain not found")
            }
            return .results([0, 0, 0, 3, 0, 0, 0, 1])
        case .eventCallbackRegisterAny:
            let message = LibvirtCalls.reply {
                $0.int(56)
                $0.domain(machine)
                $0.int(3)
                $0.int(0)
            }
            // The first event is on its way when the answer is.
            return .packets([
                Packet(packet.header.reply(.ok), body: [0, 0, 0, 56]),
                Packet(
                    PacketHeader(procedure: 318, type: .message, serial: 1), body: message.bytes),
            ])
        default: return .results(packet.body)
        }
    }

    private func withDoor(
        _ script: @escaping ScriptedLibvirtd.Script = { script($0, $1) },
        flags: UInt32 = 0,
        _ body: (UpstreamConnection, ScriptedLibvirtd, JobManager) async throws -> Void
    ) async throws {
        let libvirtd = try await ScriptedLibvirtd(libvirtdPath, script)
        let manager = try await fixture.manager(stored: true)
        let xml = fixture.domainXML().replacing(
            "</name>", with: "</name><uuid>\(Self.uuid)</uuid>")
        try await manager.define(xml: xml)
        try await manager.define(xml: fixture.domainXML("only"))
        let server = LibvirtServer(
            manager: manager, socketPath: doorPath,
            upstream: UpstreamSettings(socketPath: libvirtdPath))
        let running = Task { try await server.run() }
        let path = doorPath
        #expect(try await eventually { FileManager.default.fileExists(atPath: path) })
        let delivered = delivered
        var client: UpstreamConnection?
        #expect(
            try await eventually {
                client = try? await UpstreamConnection.open(
                    UpstreamSettings(socketPath: path), uri: "nbdpull:///system", flags: flags,
                    deliver: { delivered.add($0) }, ended: { delivered.end($0) })
                return client != nil
            })
        let opened = try #require(client)
        try await body(opened, libvirtd, manager)
        opened.close()
        running.cancel()
        try? await running.value
    }

    private func domain(_ wire: WireDomain, _ more: [UInt8] = []) -> [UInt8] {
        LibvirtCalls.reply { $0.domain(wire) }.bytes + more
    }

    private func list(_ client: UpstreamConnection, flags: UInt32) async throws -> [String] {
        let reply = try await client.call(
            .listAllDomains,
            LibvirtCalls.reply {
                $0.int(1)
                $0.uint(flags)
            }.bytes)
        var reader = XDRReader(reply.body)
        let names = try reader.domains().map(\.name)
        #expect(try Int(reader.uint()) == names.count)
        return names
    }

    @Test("lists hold libvirtd's domains by its names, and those that only this server knows")
    func lists() async throws {
        try await withDoor { client, _, manager in
            #expect(try await list(client, flags: 0) == ["machine", "other", "only"])
            // Libvirtd's are all running: none of them may be listed as ours that is not.
            #expect(try await list(client, flags: 2) == ["only"])
            #expect(try await list(client, flags: 1 << 14) == [])
            try await manager.createCheckpoint(
                domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
            #expect(try await list(client, flags: 1 << 14) == ["machine"])
            #expect(try await list(client, flags: 1 << 15) == ["other", "only"])
        }
    }

    @Test("libvirtd says how its machines are, we of those it does not know")
    func states() async throws {
        try await withDoor { client, _, manager in
            let theirs = try await client.call(.domainGetState, domain(Self.machine, [0, 0, 0, 0]))
            #expect(theirs.body == [0, 0, 0, 3, 0, 0, 0, 1])
            let only = try #require(await manager.domains["only"])
            let wire = WireDomain(
                name: "only", uuid: UUIDText.bytes(only.definition.uuid), id: -1)
            let ours = try await client.call(.domainGetState, domain(wire, [0, 0, 0, 0]))
            #expect(ours.body.prefix(4) == [0, 0, 0, 5])
            let nobody = WireDomain(
                name: "x", uuid: [UInt8](repeating: 1, count: 16), id: -1)
            await #expect(throws: UpstreamFault.self) {
                try await client.call(.domainGetState, domain(nobody, [0, 0, 0, 0]))
            }
            let found = try await client.call(
                .domainLookupByName, LibvirtCalls.reply { $0.string("only") }.bytes)
            var reader = XDRReader(found.body)
            #expect(try reader.domain().uuid == wire.uuid)
        }
    }

    @Test("checkpoints of our domains never reach libvirtd, those of others always do")
    func checkpoints() async throws {
        try await withDoor { client, libvirtd, manager in
            try await manager.createCheckpoint(
                domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
            let lookup = LibvirtCalls.reply {
                $0.string("c1")
                $0.uint(0)
            }.bytes
            _ = await client.reply(
                to: .checkpointLookupByName, domain(Self.machine, lookup))
            #expect(libvirtd.count(.checkpointLookupByName) == 0)
            _ = await client.reply(to: .checkpointLookupByName, domain(Self.other, lookup))
            #expect(libvirtd.count(.checkpointLookupByName) == 1)
        }
    }

    @Test("P3: no instant is fixed of a disk that the machine has from elsewhere")
    func disksFromElsewhere() async throws {
        let local = "<disk type='file' device='disk'><source file='/x'/><target dev='vda'/></disk>"
        let host = "<host transport='unix' socket='\(fixture.runDirectory)/live.sock'/>"
        let ours =
            "<disk type='network' device='disk'><source protocol='nbd' name='vm1/vdb'>\(host)"
            + "</source><target dev='vdb'/></disk>"
        try await withDoor { packet, libvirtd in
            guard packet.header.procedure == Procedure.domainGetXMLDesc.rawValue else {
                return Self.script(packet, libvirtd)
            }
            let xml =
                "<domain type='kvm' id='3'><name>machine</name><devices>\(local)\(ours)</devices>"
                + "</domain>"
            return .results(LibvirtCalls.reply { $0.string(xml) }.bytes)
        } _: { client, _, manager in
            func begin(_ disks: String) async throws -> Packet {
                let xml =
                    "<domainbackup mode='pull'><server transport='unix' socket='"
                    + "\(fixture.root)/b.sock'/>\(disks)</domainbackup>"
                let body = LibvirtCalls.reply {
                    $0.string(xml)
                    $0.optionalString(nil)
                    $0.uint(0)
                }.bytes
                return try await client.reply(to: .domainBackupBegin, domain(Self.machine, body))
                    .get()
            }
            let checkpoint = LibvirtCalls.reply {
                $0.string("<domaincheckpoint><name>c1</name></domaincheckpoint>")
                $0.uint(0)
            }.bytes
            for disks in ["", "<disks><disk name='vda'/></disks>"] {
                let refusal = try await begin(disks).error
                #expect(refusal?.code == 67 && refusal?.message.contains("'vda'") == true)
            }
            let refused = try await client.reply(
                to: .checkpointCreateXML, domain(Self.machine, checkpoint)
            ).get()
            #expect(refused.error?.code == 67)
            let disks = try await manager.disks(of: "vm1")
            #expect(disks.allSatisfy { ($0.checkpoints ?? []).isEmpty })
            #expect(try await manager.listJobs(domain: "vm1").isEmpty)
            let begun = try await begin("<disks><disk name='vdb'/></disks>")
            #expect(begun.error == nil, "\(String(describing: begun.error))")
            try await manager.end(domain: "vm1", job: nil, cause: .success)
        }
    }

    private static func definition(_ fixture: ControlFixture) -> String {
        """
        <domain type='kvm' id='3'><name>machine</name><devices>
        <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>
        <source protocol='nbd' name='vm1/vda'><host transport='unix' \
        socket='\(fixture.runDirectory)/live.sock'/><reconnect delay='9'/></source>
        <target dev='vda' bus='virtio'/></disk>
        <disk type='network' device='disk'><source protocol='nbd' name='vm1/vdb'>\
        <host name='elsewhere' port='10809'/></source><target dev='vdb'/></disk>
        </devices></domain>
        """
    }

    @Test("a disk that is taken away or changed by the XML that was shown is the machine's own")
    func shownDisk() async throws {
        let xml = Self.definition(fixture)
        try await withDoor { packet, libvirtd in
            packet.header.procedure == Procedure.domainGetXMLDesc.rawValue
                ? .results(LibvirtCalls.reply { $0.string(xml) }.bytes)
                : Self.script(packet, libvirtd)
        } _: { client, libvirtd, _ in
            let shown = try await client.call(
                .domainGetXMLDesc, domain(Self.machine, [0, 0, 0, 0]))
            var reader = XDRReader(shown.body)
            let text = try reader.string()
            #expect(text.contains("/vda.qcow2") && text.contains("name='vm1/vdb'"))
            let start = try #require(text.range(of: "<disk "))
            let end = try #require(text.range(of: "</disk>"))
            let disk = String(text[start.lowerBound..<end.upperBound])
                .replacing("bus='virtio'/>", with: "bus='virtio'/><boot order='1'/>")
            let cases: [(Procedure, [UInt8])] = [
                (.domainDetachDevice, []), (.domainDetachDeviceFlags, [0, 0, 0, 1]),
                (.domainUpdateDeviceFlags, [0, 0, 0, 2]),
            ]
            for (index, (procedure, flags)) in cases.enumerated() {
                let body = domain(
                    Self.machine, LibvirtCalls.reply { $0.string(disk) }.bytes + flags)
                let header = PacketHeader(
                    procedure: procedure.rawValue, type: .call, serial: UInt32(30 + index))
                try await client.pass(Packet(header, body: body)).get()
                #expect(try await eventually { libvirtd.count(procedure) == 1 })
                let passed = try #require(
                    libvirtd.calls.last { $0.header.procedure == procedure.rawValue })
                #expect(passed.header == header)
                var arguments = XDRReader(passed.body)
                #expect(try arguments.domain() == Self.machine)
                let told = try arguments.string()
                #expect(told.contains("type='network'") && told.contains("<reconnect delay='9'/>"))
                #expect(told.contains("type='raw'") && told.contains("<boot order='1'/>"))
                #expect(!told.contains("stand-ins"))
                #expect(passed.body.suffix(flags.count) == flags[...])
            }
        }
    }

    @Test("a disk that the machine does not have here, and one that is served, are refused")
    func refusedDisks() async throws {
        let xml = Self.definition(fixture)
        try await withDoor { packet, libvirtd in
            packet.header.procedure == Procedure.domainGetXMLDesc.rawValue
                ? .results(LibvirtCalls.reply { $0.string(xml) }.bytes)
                : Self.script(packet, libvirtd)
        } _: { client, libvirtd, manager in
            let before = libvirtd.calls.count
            let image = "\(manager.standInDirectory)/\(Self.uuid)/vdb.qcow2"
            let disk =
                "<disk type='file' device='disk'><source file='\(image)'/><target dev='vdb'/></disk>"
            let detach = domain(
                Self.machine, LibvirtCalls.reply { $0.string(disk) }.bytes + [0, 0, 0, 1])
            let ours = LibvirtCalls.reply { $0.string(fixture.domainXML("vm1")) }.bytes
            let calls: [(Procedure, [UInt8])] = [
                (.domainDetachDeviceFlags, detach), (.domainDefineXML, ours),
                (.domainDefineXMLFlags, ours + [0, 0, 0, 1]),
                (.domainCreateXML, ours + [0, 0, 0, 0]),
                (.domainDefineXML, [UInt8](repeating: 65, count: 5 << 20)),
            ]
            for (index, (procedure, body)) in calls.enumerated() {
                let header = PacketHeader(
                    procedure: procedure.rawValue, type: .call, serial: UInt32(40 + index))
                try await client.pass(Packet(header, body: body)).get()
                #expect(try await eventually { delivered.packets.count == index + 1 })
            }
            #expect(delivered.packets.map { $0.error?.code } == [67, 67, 67, 67, 39])
            // Only the machine's XML was asked for.
            #expect(
                libvirtd.calls.dropFirst(before).allSatisfy {
                    $0.header.procedure == Procedure.domainGetXMLDesc.rawValue
                })
        }
    }

    @Test("a domain of ours is active for who wants a backup, whatever its machine does")
    func active() async throws {
        try await withDoor { client, libvirtd, _ in
            let reply = try await client.call(.domainIsActive, domain(Self.machine))
            #expect(reply.body == [0, 0, 0, 1])
            #expect(libvirtd.count(.domainIsActive) == 0)
            _ = await client.reply(to: .domainIsActive, domain(Self.other))
            #expect(libvirtd.count(.domainIsActive) == 1)
        }
    }

    @Test("an event never overtakes the answer to its registration; both have libvirtd's number")
    func events() async throws {
        try await withDoor { client, _, _ in
            // Passed as a client does, so that answer and event are delivered in their order.
            try await client.pass(
                Packet(
                    PacketHeader(
                        procedure: Procedure.eventCallbackRegisterAny.rawValue, type: .call,
                        serial: 9), body: [0, 0, 0, 0, 0, 0, 0, 0])
            ).get()
            #expect(try await eventually { delivered.packets.count == 2 })
            #expect(delivered.packets.first?.header.serial == 9)
            #expect(delivered.packets.first?.body == [0, 0, 0, 56])
            #expect(delivered.packets.last?.header.procedure == 318)
            #expect(delivered.packets.last?.body.prefix(4) == [0, 0, 0, 56])
        }
    }

    @Test("other programs, unknown procedures and streams pass, with the client's serials")
    func passed() async throws {
        try await withDoor { client, libvirtd, _ in
            for (program, procedure) in [
                (LibvirtProgram.qemu, Int32(3)), (LibvirtProgram.remote, 208),
                (LibvirtProgram.remote, 460),
            ] {
                var header = PacketHeader(procedure: procedure, type: .call, serial: 21)
                header.program = program
                try await client.pass(Packet(header, body: [1, 2, 3, 4])).get()
            }
            let part = PacketHeader(procedure: 208, type: .stream, serial: 21, status: .more)
            try await client.pass(Packet(part, body: [5, 6, 7, 8])).get()
            #expect(try await eventually { delivered.packets.count == 4 })
            #expect(delivered.packets.allSatisfy { $0.header.serial == 21 })
            let passed = libvirtd.calls.suffix(4)
            #expect(
                passed.map(\.body) == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]])
            #expect(passed.last?.header.type == PacketType.stream.rawValue)
        }
    }

    @Test("serials of the door's and stand-ins in definitions do not pass")
    func refused() async throws {
        try await withDoor { client, libvirtd, manager in
            let before = libvirtd.calls.count
            let xml = "<domain><source file='\(manager.standInDirectory)/a/vda.qcow2'/></domain>"
            let define = LibvirtCalls.reply { $0.string(xml) }.bytes
            let calls = [
                PacketHeader(procedure: 11, type: .call, serial: UpstreamSerial.first),
                PacketHeader(procedure: 11, type: .call, serial: 5),
                PacketHeader(procedure: 350, type: .call, serial: 6),
            ]
            for header in calls { try await client.pass(Packet(header, body: define)).get() }
            #expect(try await eventually { delivered.packets.count == 2 })
            #expect(delivered.packets.allSatisfy { $0.error != nil })
            #expect(libvirtd.calls.count == before)
            try await client.pass(
                Packet(
                    PacketHeader(procedure: 11, type: .call, serial: 7),
                    body: LibvirtCalls.reply { $0.string("<domain/>") }.bytes)
            ).get()
            #expect(try await eventually { libvirtd.calls.count == before + 1 })
        }
    }

    @Test("a read-only client has a read-only connection to libvirtd, and its calls pass nothing")
    func readOnly() async throws {
        try await withDoor(flags: 1) { client, libvirtd, _ in
            let opened = try #require(libvirtd.calls.first { $0.header.procedure == 1 })
            var arguments = XDRReader(opened.body)
            _ = try arguments.optionalString()
            #expect(try arguments.uint() == 1)
            await #expect(throws: UpstreamFault.self) {
                try await client.call(.domainAbortJob, domain(Self.other))
            }
            #expect(libvirtd.count(.domainAbortJob) == 0)
        }
    }

    @Test("a client's connection ends when libvirtd dies, as it would without us")
    func dies() async throws {
        try await withDoor { client, libvirtd, manager in
            try await libvirtd.die()
            #expect(try await eventually { !client.isOpen })
            #expect(await manager.domains.count == 2)
        }
    }

    @Test("a libvirtd that hangs holds up nothing of ours")
    func hangs() async throws {
        try await withDoor { packet, libvirtd in
            packet.header.procedure == Procedure.getType.rawValue
                ? .deafness : Self.script(packet, libvirtd)
        } _: { client, _, manager in
            async let hanging = client.reply(to: .getType, [], seconds: 20)
            try await manager.createCheckpoint(
                domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
            for _ in 0..<20 {
                let reply = try await client.call(.getURI, [], seconds: 2)
                #expect(!reply.body.isEmpty)
                _ = try await client.reply(
                    to: .domainListAllCheckpoints,
                    domain(Self.machine, [0, 0, 0, 1, 0, 0, 0, 0]), seconds: 2
                ).get()
            }
            client.close()
            _ = await hanging
        }
    }

    @Test("a libvirtd that is not there is named when a client connects")
    func missing() async throws {
        let manager = try await fixture.manager()
        let server = LibvirtServer(
            manager: manager, socketPath: doorPath,
            upstream: UpstreamSettings(socketPath: libvirtdPath))
        let running = Task { try await server.run() }
        let path = doorPath
        let libvirtd = libvirtdPath
        #expect(
            try await eventually {
                do throws(UpstreamFault) {
                    _ = try await UpstreamConnection.open(
                        UpstreamSettings(socketPath: path), uri: "", flags: 0, deliver: { _ in })
                } catch {
                    return error.wire.message.contains("'\(libvirtd)': No such file")
                }
                return false
            })
        running.cancel()
        try? await running.value
    }
}
