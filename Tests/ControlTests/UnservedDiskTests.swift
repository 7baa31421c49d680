import Control
import Foundation
import Testing

/// Domains with disks that cannot be served.
@Suite struct UnservedDiskTests {
    private static func xml(_ fixture: ControlFixture) -> String {
        fixture.domainXML().replacing(
            "</devices>",
            with: """
                <disk type='file'><driver type='qed'/><source file='/q.qed'/>
                  <target dev='vdq'/></disk>
                <disk type='network'><source protocol='ssh' name='p/i'/><target dev='vdn'/></disk>
                <disk type='file'><source file='/optional.raw' startupPolicy='optional'/>
                  <target dev='vdo'/></disk>
                </devices>
                """)
    }

    @Test("a domain is served without them, and says why, after a restart as well")
    func servedWithout() async throws {
        let fixture = try ControlFixture()
        do {
            fixture.engine.change { $0.unusablePaths = ["/optional.raw"] }
            let manager = try await fixture.manager(stored: true)
            let view = try await manager.define(xml: Self.xml(fixture))
            #expect(view.failedDisks == 3 && view.problems?.count == 3)
            #expect(view.problems?.first?.contains("'qed'") == true)
            await manager.shutdown()
        }
        let manager = try await fixture.manager(FakeEngine(), stored: true)
        let warnings = await manager.restore()
        #expect(warnings.count == 2, "\(warnings)")
        let disks = try await manager.disks(of: "vm1")
        let reasons = Dictionary(grouping: disks) { $0.disk }.mapValues { $0.first?.errorMessage }
        #expect(reasons["vda"] == .some(nil))
        #expect(reasons["vdo"] == .some(nil), "it is there now")
        #expect(reasons["vdn"]??.contains("'network'") == true)
        #expect(disks.first { $0.disk == "vdn" }?.source == "p/i")
    }

    @Test("a job leaves them out, and one that names one is refused with the reason")
    func jobs() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: Self.xml(fixture))
        let job = try await manager.begin(domain: "vm1", BeginRequest())
        #expect(job.exports.map(\.disk) == ["vda", "vdb", "vdo"])
        try await manager.end(domain: "vm1", job: job.id, cause: .success)
        let named = fixture.backupXML(socket: fixture.root + "/j.sock").replacing(
            "</domainbackup>", with: "<disks><disk name='vdq'/></disks></domainbackup>")
        let error = await #expect(throws: ControlError.self) {
            try await manager.begin(domain: "vm1", BeginRequest(backupXML: named))
        }
        #expect(error?.code == "disk-not-served" && error?.message.contains("'qed'") == true)
        let left = named.replacing("name='vdq'", with: "name='vdq' backup='no'/><disk name='vda'")
        _ = try await manager.begin(domain: "vm1", BeginRequest(backupXML: left))
    }
}
