import Control
import Foundation
import ServerInterface
import Testing

/// What is a disk of any domain is nobody's scratch and nobody's target, whether this server has it
/// open or not.
@Suite struct UsedPlaceTests {
    enum Standing: CaseIterable { case served, away, failed }

    private static func xml(_ root: String, _ device: String?) -> String {
        let block = device.map {
            "<disk type='block' device='disk'><source dev='\($0)'/><target dev='vde'/></disk>"
        }
        return """
            <domain type='kvm'><name>vm1</name><devices>
              <disk type='file' device='disk'><source file='\(root)/a.raw'/>
                <target dev='vda'/></disk>
              <disk type='network' device='disk'><source protocol='nbd' name='d'>
                <host transport='unix' socket='\(root)/d.sock'/></source><target dev='vdb'/></disk>
              <disk type='network' device='disk'><source protocol='rbd' name='pool/image'/>
                <target dev='vdc'/></disk>
              <disk type='file' device='disk'><driver type='qcow2'/>
                <source file='\(root)/top.qcow2'/>
                <backingStore type='file'><format type='raw'/><source file='\(root)/base.raw'/>
                  <backingStore/></backingStore><target dev='vdd'/></disk>
              \(block ?? "")
            </devices></domain>
            """
    }

    /// Any device of the machine; the engine opens nothing.
    private static var device: String? {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/dev")) ?? []
        return names.sorted().map { "/dev/" + $0 }.first {
            SystemCalls.reached($0)?.isBlock == true
        }
    }

    /// A server with vm1, whose disks are as said, and vm2, which is backed up.
    private func manager(
        _ fixture: ControlFixture, _ standing: Standing
    ) async throws -> JobManager {
        let (root, files) = (fixture.root, FileManager.default)
        for name in ["a.raw", "top.qcow2", "base.raw", "d.sock", "free.raw"] {
            _ = files.createFile(atPath: "\(root)/\(name)", contents: Data(count: 4096))
        }
        try files.createSymbolicLink(
            atPath: root + "/a.link", withDestinationPath: root + "/a.raw")
        try files.linkItem(atPath: root + "/a.raw", toPath: root + "/a.hard")
        try files.createSymbolicLink(
            atPath: root + "/d.link", withDestinationPath: root + "/d.sock")
        if let device = Self.device {
            try files.createSymbolicLink(atPath: root + "/e.link", withDestinationPath: device)
        }
        let manager = try await fixture.manager(stored: true)
        let xml = Self.xml(root, Self.device)
        let definition = try DomainDefinition.parse(xml)
        if standing == .failed {
            fixture.engine.change { $0.unusablePaths = Set(definition.disks.compactMap(\.path)) }
            _ = await manager.restore([StartDomain(definition: definition, isStored: false)])
        } else {
            try await manager.define(xml: xml)
        }
        if standing == .away {
            _ = try await manager.exportState(of: "vm1", disks: [], to: root + "/vm1.moved")
        }
        try await manager.define(xml: fixture.domainXML("vm2"))
        return manager
    }

    private func refusal(
        _ manager: JobManager, _ disk: String, isPush: Bool = false, reuse: Bool = false
    ) async throws -> ControlError? {
        let server = "<server transport='unix' socket='/run/b.sock'/>"
        let xml =
            "<domainbackup\(isPush ? "" : " mode='pull'")>\(isPush ? "" : server)<disks>\(disk)"
            + "<disk name='vdb' backup='no'/></disks></domainbackup>"
        do throws(ControlError) {
            let job = try await manager.begin(
                domain: "vm2", BeginRequest(backupXML: xml, reuseExternal: reuse))
            _ = try await manager.end(domain: "vm2", job: job.id, cause: .success)
            return nil
        } catch {
            return error
        }
    }

    @Test(
        "P5: a disk of another domain is not taken as scratch, by none of its names",
        arguments: Standing.allCases)
    func scratch(standing: Standing) async throws {
        let fixture = try ControlFixture()
        let root = fixture.root
        let manager = try await manager(fixture, standing)
        func nbd(_ socket: String, _ name: String) -> String {
            "<disk name='vda' type='network'><scratch protocol='nbd' name='\(name)'>"
                + "<host transport='unix' socket='\(root)/\(socket)'/></scratch></disk>"
        }
        func file(_ name: String) -> String {
            "<disk name='vda' type='file'><scratch file='\(root)/\(name)'/></disk>"
        }
        let rbd =
            "<disk name='vda' type='network'><scratch protocol='rbd' name='pool/image'/></disk>"
        var cases = [
            (file("a.raw"), "vda"), (file("a.link"), "vda"), (file("a.hard"), "vda"),
            (file("top.qcow2"), "vdd"), (file("base.raw"), "vdd"), (nbd("d.sock", "d"), "vdb"),
            (nbd("d.link", "d"), "vdb"), (rbd, "vdc"),
        ]
        if Self.device != nil {
            cases.append(
                ("<disk name='vda' type='block'><scratch dev='\(root)/e.link'/></disk>", "vde"))
        }
        for (disk, target) in cases {
            let error = try await refusal(manager, disk, reuse: true)
            #expect(error?.code == "scratch-is-source", "\(disk)")
            #expect(
                error?.message.contains("it is the source of disk 'vm1/\(target)'") == true,
                "\(error?.message ?? "")")
        }
        // A name by which a file would be made now.
        for name in ["a.raw", "./a.raw", "/a.raw", "././/a.raw"] {
            #expect(try await refusal(manager, file(name))?.code == "scratch-is-source", "\(name)")
        }
        #expect(fixture.engine.jobCount == 0)
        // Another export of the same server, and a file that is nobody's.
        for disk in [nbd("d.sock", "other"), file("free.raw")] {
            #expect(try await refusal(manager, disk, reuse: true) == nil, "\(disk)")
        }
        #expect(
            try FileManager.default.contentsOfDirectory(
                atPath: fixture.stateDirectory + "/jobs"
            ).isEmpty)
    }

    @Test(
        "P5: no push writes over a disk of another domain or a layer of one",
        arguments: Standing.allCases)
    func target(standing: Standing) async throws {
        let fixture = try ControlFixture()
        let manager = try await manager(fixture, standing)
        for (name, disk) in [("a.link", "vda"), ("base.raw", "vdd"), ("top.qcow2", "vdd")] {
            let xml =
                "<disk name='vda'><driver type='raw'/>"
                + "<target file='\(fixture.root)/\(name)'/></disk>"
            let error = try await refusal(manager, xml, isPush: true, reuse: true)
            #expect(error?.code == "target-in-use")
            #expect(
                error?.message.contains("it is disk '\(disk)' of domain 'vm1'") == true,
                "\(error?.message ?? "")")
        }
    }

    @Test("P5: a disk that another server has is opened as no other disk either")
    func elsewhere() async throws {
        let fixture = try ControlFixture()
        let root = fixture.root
        func xml(_ name: String, _ file: String, _ more: String = "") -> String {
            "<domain><name>\(name)</name><devices><disk type='file'><source file='\(root)/\(file)'/>"
                + "<target dev='vda'/>\(more)</disk></devices></domain>"
        }
        _ = FileManager.default.createFile(
            atPath: root + "/a.raw", contents: Data(count: 4096))
        try FileManager.default.createSymbolicLink(
            atPath: root + "/a.link", withDestinationPath: root + "/a.raw")
        let manager = try await fixture.manager(stored: true)
        // The engine has the file for the first one only.
        fixture.engine.change { $0.unusablePaths = [root + "/a.link"] }
        let definitions = [try DomainDefinition.parse(xml("vm2", "a.link"))]
        _ = await manager.restore(
            definitions.map { StartDomain(definition: $0, isStored: false) })
        try await manager.define(xml: xml("vm1", "a.raw"))
        _ = try await manager.exportState(of: "vm1", disks: [], to: root + "/vm1.moved")
        fixture.engine.change { $0.unusablePaths = [] }
        // Nobody takes it up because it is free now.
        let disks = try await manager.disks(of: "vm2")
        let words = "is disk 'vda' of domain 'vm1', which another server has"
        #expect(disks[0].errorMessage?.contains(words) == true, "\(disks)")
        for file in ["a.raw", "a.link"] {
            let error = await #expect(throws: ControlError.self) {
                try await manager.define(xml: xml("vm3", file))
            }
            #expect(error?.code == "source-locked")
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
        }
        #expect(fixture.engine.attachedCount == 0)
        // Reading harms nobody; and who is told that it is nobody's any more has it.
        try await manager.define(xml: xml("vm4", "a.raw", "<readonly/>"))
        try await manager.undefine("vm4")
        try await manager.undefine("vm1")
        #expect(try await manager.disks(of: "vm2")[0].errorMessage == nil)
    }

    @Test(
        "P5: an image of Ceph is another one's only where both name monitors, and none is of both")
    func clusters() async throws {
        let fixture = try ControlFixture()
        func hosts(_ names: [String]) -> String {
            names.map { "<host name='\($0)' port='6789'/>" }.joined()
        }
        func disk(_ names: [String]) -> String {
            "<disk type='network' device='disk'><source protocol='rbd' name='pool/image'>"
                + "\(hosts(names))</source><target dev='vda'/></disk>"
        }
        let manager = try await fixture.manager(stored: true)
        try await manager.define(
            xml:
                "<domain type='kvm'><name>vm1</name><devices>\(disk(["a", "b"]))</devices></domain>"
        )
        try await manager.define(xml: fixture.domainXML("vm2"))
        for (names, isTaken) in [
            ([], true), (["b", "a"], true), (["B", "c"], true), (["c", "d"], false),
        ] {
            let scratch =
                "<disk name='vda' type='network'><scratch protocol='rbd' name='pool/image'>"
                + "\(hosts(names))</scratch></disk>"
            let error = try await refusal(manager, scratch)
            #expect(error?.code == (isTaken ? "scratch-is-source" : nil), "\(names)")
        }
    }
}
