import Control
import Foundation
import ServerInterface
import Testing

/// Disks that a command line names and that come later than the server.
@Suite struct LateDiskTests {
    @Test("a device that comes late is served as what it is, and shown as that; a file is one")
    func kinds() async throws {
        let fixture = try ControlFixture()
        let (device, file) = (fixture.root + "/device", fixture.root + "/file")
        let definition = DomainDefinition(
            name: "vm1",
            disks: [
                try ServeArguments.disk("vda=\(device),readonly"),
                try ServeArguments.disk("vdb=\(file)"),
            ])
        fixture.engine.change { $0.unusablePaths = [device, file] }
        let manager = try await fixture.manager(stored: true)
        _ = await manager.restore([StartDomain(definition: definition, isStored: false)])
        #expect(await manager.listDomains().map(\.failedDisks) == [2])
        // Any device of the machine; the engine opens nothing.
        try FileManager.default.createSymbolicLink(
            atPath: device, withDestinationPath: try Self.blockDevice())
        try Data().write(to: URL(fileURLWithPath: file))
        fixture.engine.change { $0.unusablePaths = [] }
        await manager.keepOpening()
        #expect(try await eventually { fixture.engine.attachedCount == 2 })
        let kinds = fixture.engine.look { state in
            Dictionary(
                state.attached.values.map { ($0.exportName, $0.kind) }, uniquingKeysWith: { $1 })
        }
        #expect(kinds == ["vm1/vda": .block, "vm1/vdb": .file])
        #expect(
            try await eventually {
                try await manager.disks(of: "vm1").allSatisfy { $0.errorMessage == nil }
            })
        let xml = try await manager.domainXML("vm1")
        #expect(xml.contains("<source dev='\(device)'/>"), "\(xml)")
        #expect(xml.contains("<source file='\(file)'/>"), "\(xml)")
        #expect(xml.contains("<readonly/>"), "\(xml)")
        // What was assumed is in nobody's way when the domain is changed.
        _ = try await manager.attachDisk(
            xml: "<disk type='file'><source file='/c'/><target dev='vdc'/></disk>", to: "vm1")
        #expect(fixture.engine.attachedCount == 3)
    }

    private static func blockDevice() throws -> String {
        let names = try FileManager.default.contentsOfDirectory(atPath: "/dev")
        let found = names.sorted().map { "/dev/" + $0 }.first {
            SystemCalls.reached($0)?.isBlock == true
        }
        return try #require(found, "no block device in /dev to stand for one")
    }
}
