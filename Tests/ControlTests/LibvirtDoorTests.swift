import Foundation
import LibvirtProtocol
import ServerInterface
import Testing

@testable import Control

/// The libvirt door over a real socket.
@Suite(.timeLimit(.minutes(1))) struct LibvirtDoorTests {
    private let fixture: ControlFixture

    init() throws { fixture = try ControlFixture() }

    private var path: String { fixture.root + "/libvirt-sock" }

    /// A served domain `vm1`, and the door to it.
    private func serving(
        _ body: (JobManager) async throws -> Void
    ) async throws {
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let server = LibvirtServer(manager: manager, socketPath: path)
        let running = Task { try await server.run() }
        #expect(try await eventually { SystemCalls.isListening(unixPath: path) })
        try await body(manager)
        await manager.shutdown()
        running.cancel()
        try await running.value
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    private func arguments(_ write: (inout XDRWriter) -> Void) -> [UInt8] {
        LibvirtCalls.reply(write).bytes
    }

    private func wire(_ peer: DoorPeer, _ name: String = "vm1") async throws -> WireDomain {
        let reply = try #require(
            try await peer.call(.domainLookupByName, arguments { $0.string(name) }))
        var reader = XDRReader(reply.body)
        return try reader.domain()
    }

    private func state(_ peer: DoorPeer, _ domain: WireDomain) async throws -> Int32 {
        let reply = try await peer.call(
            .domainGetState,
            arguments {
                $0.domain(domain)
                $0.uint(0)
            })
        var reader = XDRReader(reply?.body ?? [])
        return try reader.int()
    }

    @Test("P6: nothing of a connection stays when it is over, however it ends")
    func nothingStays() async throws {
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let server = LibvirtServer(manager: manager, socketPath: path)
        let running = Task { try await server.run() }
        #expect(try await eventually { SystemCalls.isListening(unixPath: path) })
        let seen = SeenSessions()
        for number in 0..<6 {
            let peer = try await DoorPeer(path)
            if number > 0 { try await peer.open() }
            #expect(try await eventually { !server.door.sessions.isEmpty })
            seen.add(server.door.sessions)
            switch number {
            case 1: _ = try await peer.call(.close)
            // A length that no packet has.
            case 2: await peer.send([0, 0, 0, 1])
            default: break
            }
            await peer.close()
            #expect(try await eventually { server.door.sessions.isEmpty })
        }
        #expect(try await eventually { seen.count == 0 })
        await manager.shutdown()
        running.cancel()
        try await running.value
    }

    // MARK: Answers

    @Test("every procedure of the table has a handler, and every handler an entry")
    func complete() {
        #expect(
            Set(LibvirtCalls.all.keys).subtracting([.open, .close])
                == Set(ProcedureTable.all.map(\.procedure)).subtracting([.open, .close]))
    }

    @Test("what a handler answers has the shape that the table says")
    func shapes() async throws {
        try await serving { _ in
            let peer = try await DoorPeer(path)
            try await peer.open()
            let domain = try await wire(peer)
            for entry in ProcedureTable.all where entry.access != .readWrite {
                guard entry.procedure != .open, entry.procedure != .close else { continue }
                let body = arguments { writer in
                    for shape in entry.arguments { Self.write(shape, domain, to: &writer) }
                }
                let reply = try await peer.call(entry.procedure, body)
                guard let reply else {
                    Issue.record("\(entry.procedure.function): no answer")
                    return
                }
                if reply.header.status == PacketStatus.ok.rawValue {
                    #expect(
                        try XDRShape.check(entry.results, reply.body) == 0,
                        "\(entry.procedure.function)")
                } else {
                    _ = try WireError(body: reply.body)
                }
            }
        }
    }

    private static func write(_ shape: XDRShape, _ domain: WireDomain, to writer: inout XDRWriter) {
        switch shape {
        case .int, .uint: writer.uint(0)
        case .hyper, .uhyper, .double: writer.uhyper(0)
        case .string: writer.string("vda")
        case .optionalString: writer.bool(false)
        case .uuid: writer.opaque(domain.uuid)
        case .domain: writer.domain(domain)
        case .optionalDomain:
            writer.bool(true)
            writer.domain(domain)
        case .checkpoint: writer.checkpoint(WireCheckpoint(name: "c", domain: domain))
        case .parameter: writer.parameter(TypedParameter("p", .int(1)))
        case .array: writer.count(0)
        }
    }

    @Test(
        "a domain runs while a client is connected to it, can be backed up at any time, and tells of it"
    )
    func states() async throws {
        try await serving { _ in
            let peer = try await DoorPeer(path)
            try await peer.open()
            let registration = try await peer.call(
                .eventCallbackRegisterAny,
                arguments {
                    $0.int(LibvirtEventKind.lifecycle)
                    $0.bool(false)
                })
            #expect(registration?.body == [0, 0, 0, 0])
            let domain = try await wire(peer)
            #expect(domain.id == -1)
            #expect(try await state(peer, domain) == LibvirtCalls.State.shutOff)
            fixture.engine.change { $0.clients["vm1/vda"] = 1 }
            #expect(try await wire(peer).id > 0)
            #expect(try await state(peer, domain) == LibvirtCalls.State.running)
            fixture.engine.look(\.handler)?(.clientConnected(export: "vm1/vda", jobID: nil))
            #expect(try await eventually { !peer.messages(.lifecycleEvent).isEmpty })
            fixture.engine.change { $0.clients = [:] }
            fixture.engine.look(\.handler)?(.clientDisconnected(export: "vm1/vda", jobID: nil))
            #expect(try await eventually { peer.messages(.lifecycleEvent).count == 2 })
            #expect(
                peer.messages(.lifecycleEvent).map { $0.body.suffix(8) } == [
                    [0, 0, 0, 2, 0, 0, 0, 0], [0, 0, 0, 5, 0, 0, 0, 0],
                ])
            let active = try await peer.call(.domainIsActive, arguments { $0.domain(domain) })
            #expect(active?.body == [0, 0, 0, 1])
        }
    }

    @Test("domains that come and go are events, of one domain or of all")
    func definitions() async throws {
        try await serving { manager in
            let peer = try await DoorPeer(path)
            try await peer.open()
            let domain = try await wire(peer)
            for wire in [nil, domain] as [WireDomain?] {
                _ = try await peer.call(
                    .eventCallbackRegisterAny,
                    arguments {
                        $0.int(LibvirtEventKind.lifecycle)
                        $0.bool(wire != nil)
                        if let wire { $0.domain(wire) }
                    })
            }
            try await manager.define(xml: fixture.domainXML("vm2"))
            #expect(try await eventually { peer.messages(.lifecycleEvent).count == 1 })
            try await manager.undefine("vm1")
            #expect(try await eventually { peer.messages(.lifecycleEvent).count == 3 })
            #expect(
                try await peer.failure(
                    .domainGetState,
                    arguments {
                        $0.domain(domain)
                        $0.uint(0)
                    })?.code == 42)
            _ = try await peer.call(.eventCallbackDeregisterAny, arguments { $0.int(0) })
            _ = try await peer.call(.eventCallbackDeregisterAny, arguments { $0.int(1) })
            try await manager.undefine("vm2")
            let error = try await peer.failure(
                .eventCallbackDeregisterAny, arguments { $0.int(1) })
            #expect(error?.message == "internal error: domain event callback 1 not registered")
            #expect(peer.messages(.lifecycleEvent).count == 3)
        }
    }

    @Test("PINGs are answered while a call waits, and later calls overtake it")
    func slowCalls() async throws {
        try await serving { manager in
            let peer = try await DoorPeer(path)
            try await peer.open()
            let domain = try await wire(peer)
            let begun = try await manager.begin(
                domain: "vm1",
                BeginRequest(
                    backupXML: fixture.backupXML(socket: fixture.root + "/b.sock"),
                    checkpointXML: nil, reuseExternal: false))
            #expect(!begun.id.isEmpty)
            fixture.engine.change { $0.endMilliseconds = 1500 }
            let slow = await peer.begin(.domainAbortJob, arguments { $0.domain(domain) })
            await peer.send(Packet.keepalive(KeepaliveProcedure.ping).bytes)
            #expect(try await peer.call(.getType) != nil)
            #expect(
                try await eventually {
                    peer.packets.contains(.keepalive(KeepaliveProcedure.pong))
                })
            #expect(peer.reply(to: slow) == nil)
            #expect(try await eventually { peer.reply(to: slow) != nil })
        }
    }

    @Test("on a read-only connection nothing is changed")
    func readOnly() async throws {
        try await serving { manager in
            let peer = try await DoorPeer(path)
            try await peer.open(isReadOnly: true)
            let domain = try await wire(peer)
            let error = try await peer.failure(
                .domainBackupBegin,
                arguments {
                    $0.domain(domain)
                    $0.string(fixture.backupXML(socket: fixture.root + "/b.sock"))
                    $0.bool(false)
                    $0.uint(0)
                })
            #expect(error?.code == 29)
            #expect(try await manager.listJobs(domain: nil).isEmpty)
            let secret = try await peer.failure(
                .domainGetXMLDesc,
                arguments {
                    $0.domain(domain)
                    $0.uint(1)
                })
            #expect(secret?.message == "operation forbidden: virDomainGetXMLDesc with secure flag")
        }
    }

    // MARK: Hostile peers

    @Test("P6: who says what is no packet is hung up on, and nobody else notices")
    func garbage() async throws {
        try await serving { _ in
            let honest = try await DoorPeer(path)
            try await honest.open()
            for bytes in [
                [0, 0, 0, 0], [0, 0, 0, 27], [0xFF, 0xFF, 0xFF, 0xFF], Array("GET / HTTP".utf8),
                Packet(PacketHeader(procedure: 3, type: .reply)).bytes,
            ] as [[UInt8]] {
                let peer = try await DoorPeer(path)
                await peer.send(bytes)
                #expect(try await eventually { peer.isOver }, "\(bytes)")
            }
            #expect(try await honest.call(.getType) != nil)
        }
    }

    @Test("P6: who does not open the connection is hung up on after ten seconds")
    func silence() async throws {
        try await serving { _ in
            let peer = try await DoorPeer(path)
            let honest = try await DoorPeer(path)
            try await honest.open()
            _ = try await peer.call(.authList)
            let began = ContinuousClock.now
            while !peer.isOver, ContinuousClock.now - began < .seconds(20) {
                try await Task.sleep(for: .milliseconds(50))
            }
            #expect(peer.isOver)
            #expect(ContinuousClock.now - began > .seconds(8))
            #expect(try await honest.call(.getType) != nil)
        }
    }

    @Test("P6: a user's connections are bounded, and one that is not opened makes way")
    func crowd() async throws {
        try await serving { _ in
            var peers: [DoorPeer] = []
            for _ in 0..<LibvirtLimits.connectionsPerUser - 1 {
                let peer = try await DoorPeer(path)
                try await peer.open()
                peers.append(peer)
            }
            let idle = try await DoorPeer(path)
            _ = try await idle.call(.authList)
            try await Task.sleep(for: .milliseconds(2 * LibvirtLimits.evictionMilliseconds))
            let honest = try await DoorPeer(path)
            try await honest.open()
            #expect(try await honest.call(.getType) != nil)
            #expect(try await eventually { idle.isOver })
            let refused = try await DoorPeer(path)
            #expect(try await eventually { refused.isOver })
            await peers[0].close()
            #expect(
                try await eventually {
                    let next = try await DoorPeer(path)
                    return try await next.call(.authList) != nil
                })
        }
    }

    @Test("P6: who does not take its replies is not read any more, and takes no memory")
    func deaf() async throws {
        try await serving { _ in
            let deaf = try await DoorPeer(path, reads: false)
            await deaf.begin(
                .open,
                arguments {
                    $0.optionalString("nbdpull:///system")
                    $0.uint(0)
                })
            let flood = Task {
                for _ in 0..<200_000 where !Task.isCancelled { await deaf.begin(.getCapabilities) }
            }
            let honest = try await DoorPeer(path)
            try await honest.open()
            for _ in 0..<20 { #expect(try await honest.call(.getType) != nil) }
            flood.cancel()
            await deaf.close()
            await flood.value
        }
    }

    @Test("P6: very many packets in one piece are taken one after the other")
    func manyAtOnce() async throws {
        try await serving { _ in
            let peer = try await DoorPeer(path)
            try await peer.open()
            let ping: [UInt8] =
                [0, 0, 0, 28, 0x6B, 0x65, 0x65, 0x70, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]
                + [UInt8](repeating: 0, count: 8)
            let pieces = Array(repeatElement(ping, count: 9000).joined())
            for _ in 0..<4 {
                await peer.send(pieces)
                #expect(try await peer.call(.getType) != nil)
            }
            await peer.close()
        }
    }

    // MARK: Small things

    @Test("lists are cut down by groups of flags")
    func filters() throws {
        let definition = try DomainDefinition.parse(fixture.domainXML())
        func domain(runs: Bool, checkpoints: Int) -> LibvirtDomain {
            LibvirtDomain(
                definition: definition, isPersistent: true, isRunning: runs,
                checkpointCount: checkpoints, jobCount: 0, id: runs ? 1 : -1)
        }
        let running = domain(runs: true, checkpoints: 0)
        let off = domain(runs: false, checkpoints: 2)
        for (flags, passes) in [
            (0, [true, true]), (1, [true, false]), (2, [false, true]), (3, [true, true]),
            (4, [true, true]), (8, [false, false]), (16, [true, false]), (32, [false, false]),
            (64, [false, true]), (1 << 14, [false, true]), (1 << 15, [true, false]),
            (1 | 1 << 14, [false, false]), (1 << 8, [false, false]), (1 << 9, [true, true]),
        ] as [(UInt32, [Bool])] {
            #expect(
                [running, off].map { LibvirtCalls.passes($0, flags) } == passes, "\(flags)")
        }
    }

    @Test("scratch is named by its disk and its index")
    func devices() {
        #expect(ScratchThresholds.parts("vda[7]")?.target == "vda")
        #expect(ScratchThresholds.parts("vda[7]")?.index == 7)
        for text in ["vda", "vda[]", "vda[x]", "vda[-1]", "vda[7", "[99999999999]", ""] {
            #expect(ScratchThresholds.parts(text) == nil, "\(text)")
        }
    }

    @Test("a machine's memory and processors are read, whatever their units")
    func machine() throws {
        func facts(_ inner: String) throws -> MachineFacts {
            MachineFacts(
                try DomainDefinition.parse(
                    "<domain type='kvm'><name>m</name>\(inner)</domain>"))
        }
        let full = try facts(
            "<memory unit='GiB'>2</memory><currentMemory>1024</currentMemory>"
                + "<vcpu current='2'>4</vcpu><os><type>hvm</type></os>")
        #expect(full.memoryMax == 2 << 20 && full.memory == 1024)
        #expect(full.processors == 2 && full.processorsMax == 4)
        let empty = try facts("")
        #expect(empty.memoryMax == 0 && empty.processors == 1)
        let huge = try facts("<memory unit='TiB'>18446744073709551615</memory>")
        #expect(huge.memoryMax == UInt64.max / 1024)
    }

    @Test("a uuid comes back from its bytes")
    func uuids() {
        let text = "00112233-4455-6677-8899-aabbccddeeff"
        #expect(UUIDText.bytes(text).count == 16)
        #expect(UUIDText.text(UUIDText.bytes(text)) == text)
    }
}

/// Sessions that may have gone.
private final class SeenSessions {
    private struct Seen { weak var session: LibvirtSession? }
    private var list: [Seen] = []

    /// Those that are still there.
    var count: Int { list.count { $0.session != nil } }

    func add(_ sessions: [LibvirtSession]) { list += sessions.map { Seen(session: $0) } }
}
