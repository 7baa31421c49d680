import Control
import Testing

/// libvirt's `startupPolicy` of drives.
@Suite struct StartupPolicyTests {
    @Test("what is to be done without a medium stays with the drive, whatever is in it")
    func startupPolicy() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(
            xml: "<domain><name>vm1</name><devices><disk type='file' device='cdrom'>"
                + "<source file='/a.iso' startupPolicy='optional'/><target dev='sda'/></disk>"
                + "</devices></domain>")
        _ = try await manager.changeMedia(of: "sda", in: "vm1", to: "/b.iso")
        var xml = try await manager.domainXML("vm1")
        #expect(xml.contains("<source file='/b.iso' startupPolicy='optional'/>"), "\(xml)")
        _ = try await manager.changeMedia(of: "sda", in: "vm1", to: nil)
        xml = try await manager.domainXML("vm1")
        #expect(xml.contains("<source startupPolicy='optional'/>"), "\(xml)")
        _ = try await manager.changeMedia(of: "sda", in: "vm1", to: "/dev/sr0", kind: .block)
        xml = try await manager.domainXML("vm1")
        #expect(xml.contains("<source dev='/dev/sr0' startupPolicy='optional'/>"), "\(xml)")
    }
}
