import LibvirtProtocol
import ServerInterface
import Testing

@testable import Control

@Suite("The libvirt door's calls on checkpoints")
struct LibvirtCheckpointCallTests {
    /// c1 - c2 - c3, all on both disks.
    private func chain() async throws -> (ControlFixture, LibvirtClient) {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1", "c2", "c3")
        return (fixture, LibvirtClient(manager))
    }

    private func create(
        _ client: LibvirtClient, _ xml: String, _ flags: UInt32 = 0
    ) async throws -> String {
        let domain = try await client.domain()
        var reply = try await client.call(.checkpointCreateXML) {
            $0.domain(domain)
            $0.string(xml)
            $0.uint(flags)
        }
        return try reply.checkpoint().name
    }

    @Test(
        "lists are cut down as libvirt cuts them",
        arguments: [
            (0, ["c1", "c2", "c3"]), (1, ["c1"]), (2, ["c1", "c2", "c3"]), (4, ["c3"]),
            (5, []), (8, ["c1", "c2"]), (9, ["c1"]), (12, []), (15, []),
        ] as [(UInt32, [String])])
    func lists(flags: UInt32, names: [String]) async throws {
        let (_, client) = try await chain()
        let list = try await client.list(flags)
        #expect(list.names == names)
        #expect(list.count == Int32(names.count))
        let count = try await client.list(flags, needsResults: 0)
        #expect(count.names.isEmpty)
        #expect(count.count == Int32(names.count))
    }

    @Test(
        "so are lists of what is below one",
        arguments: [
            (0, ["c2"]), (1, ["c2", "c3"]), (3, ["c2", "c3"]), (4, []), (5, ["c3"]), (8, ["c2"]),
            (9, ["c2"]), (13, []),
        ] as [(UInt32, [String])])
    func below(flags: UInt32, names: [String]) async throws {
        let (_, client) = try await chain()
        #expect(try await client.list(flags, from: "c1").names == names)
        let error = await #expect(throws: WireError.self) {
            try await client.list(flags, from: "nope")
        }
        #expect(error?.code == 103)
    }

    @Test("a checkpoint is looked up, described and deleted in all forms")
    func forms() async throws {
        let (_, client) = try await chain()
        let c2 = try await client.checkpoint("c2")
        var parent = try await client.call(.checkpointGetParent) {
            $0.checkpoint(c2)
            $0.uint(0)
        }
        #expect(try parent.checkpoint().name == "c1")
        var reply = try await client.call(.checkpointGetXMLDesc) {
            $0.checkpoint(c2)
            $0.uint(6)
        }
        let short = try reply.string()
        #expect(!short.contains("<domain" + " "))
        #expect(short.contains("bitmap='c2' size="))
        reply = try await client.call(.checkpointGetXMLDesc) {
            $0.checkpoint(c2)
            $0.uint(0)
        }
        let long = try reply.string()
        #expect(long.contains("<domain type='kvm'>"))
        #expect(!long.contains("size="))
        try await client.call(.checkpointDelete) {
            $0.checkpoint(c2)
            $0.uint(4)
        }
        #expect(try await client.list(0).names == ["c1", "c2"])
        try await client.call(.checkpointDelete) {
            $0.checkpoint(c2)
            $0.uint(2)
        }
        #expect(try await client.list(0).names == ["c1"])
        #expect(try await create(client, Self.redefinition("c2"), 5) == "c2")
        let c1 = try await client.checkpoint("c1")
        try await client.call(.checkpointDelete) {
            $0.checkpoint(c1)
            $0.uint(1)
        }
        #expect(try await client.list(0).names.isEmpty)
    }

    private static func redefinition(_ name: String) -> String {
        """
        <domaincheckpoint><name>\(name)</name><parent><name>c1</name></parent>\
        <creationTime>1</creationTime></domaincheckpoint>
        """
    }

    @Test("what cannot be made is refused with libvirt's numbers and texts")
    func refused() async throws {
        let (_, client) = try await chain()
        func named(_ name: String, _ inner: String = "") -> String {
            "<domaincheckpoint><name>\(name)</name>\(inner)</domaincheckpoint>"
        }
        let cases: [(String, UInt32, Int32, Int32)] = [
            (named("c1"), 0, 9, 20),
            (named("q"), 2, 74, 10),
            (named("q"), 3, 8, 69),
            (named("q"), 4, 8, 69),
            (named("q"), 8, 8, 10),
            ("<domaincheckpoint/>", 1, 27, 69),
            (named("q"), 1, 1, 69),
            (named("q", "<creationTime>1</creationTime>"), 5, 109, 10),
            (named("q", "<disks><disk name='vdz'/></disks>"), 0, 67, 69),
            (named("q", "<disks><disk name='sda'/></disks>"), 0, 67, 69),
            (named("q", "<disks><disk name='vda' bitmap='b'/></disks>"), 0, 67, 10),
            ("<domaincheckpoint", 0, 35, 69),
            (named("q", "<x/>"), 0, 92, 5),
        ]
        for (xml, flags, code, domain) in cases {
            let error = await #expect(throws: WireError.self) {
                try await create(client, xml, flags)
            }
            #expect(error?.code == code, "\(xml) \(flags): \(error?.message ?? "")")
            #expect(error?.domain == domain, "\(xml) \(flags)")
        }
        #expect(try await client.list(0).names == ["c1", "c2", "c3"])
        let flags = await #expect(throws: WireError.self) {
            try await create(client, named("q"), 8)
        }
        #expect(flags?.message == "unsupported flags (0x8) in function qemuCheckpointCreateXML")
        #expect(flags?.form == "qemuCheckpointCreateXML")
        #expect(flags?.number == 0)
    }

    @Test("a read-only client is told no password; others only when they ask for it")
    func secrets() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        let graphics = "<graphics type='vnc' passwd='secret'/></devices>"
        try await manager.define(
            xml: fixture.domainXML().replacing("</devices>", with: graphics))
        try await manager.createCheckpoint(domain: "vm1", xml: "<domaincheckpoint/>")
        let client = LibvirtClient(manager)
        let name = try #require(try await client.list(0).names.first)
        let checkpoint = try await client.checkpoint(name)
        func text(_ client: LibvirtClient, _ flags: UInt32) async throws -> String {
            var reply = try await client.call(.checkpointGetXMLDesc) {
                $0.checkpoint(checkpoint)
                $0.uint(flags)
            }
            return try reply.string()
        }
        #expect(try await !text(client, 0).contains("secret"))
        #expect(try await text(client, 1).contains("passwd='secret'"))
        let looker = LibvirtClient(manager, isReadOnly: true)
        #expect(try await !text(looker, 0).contains("secret"))
        let error = await #expect(throws: WireError.self) { try await text(looker, 1) }
        #expect(error?.code == 29)
    }
}
