import NBDProtocol
import Testing

@testable import NBDServer

@Suite("Disks that are to come")
struct ExpectedDisksTests {
    private let scope = ExportScope(jobID: nil)

    /// Whether a peer that asks for a name is made to wait for it.
    private func waits(_ name: String, user: UInt32 = 1000) throws -> Bool {
        let rules = try AccessRules(parsing: "uid 1000 live:vm1/*")
        let missed = MissedExport()
        let permitted = PermittedExports(
            scope: scope, rights: rules.rights(tls: nil, local: LocalPeer(user: user, group: 0)),
            missed: missed)
        if permitted.export(named: name) != nil { Issue.record("'\(name)' is there") }
        return missed.isMissed
    }

    @Test("a disk is asked for once somebody waits who may use it, until it has come")
    func asked() throws {
        #expect(try !waits("vm1/vda") && !scope.isAskedFor("vm1/vda"))
        scope.awaitNames(["vm1/vda", "vm1/vdb", "vm2/vda"])
        #expect(!scope.isAskedFor("vm1/vda"))
        #expect(try waits("vm1/vda") && scope.isAskedFor("vm1/vda"))
        #expect(!scope.isAskedFor("vm1/vdb"))
        // Who may not use a disk brings it no place before others.
        #expect(try !waits("vm2/vda") && !scope.isAskedFor("vm2/vda"))
        #expect(try !waits("vm1/vdb", user: 7) && !scope.isAskedFor("vm1/vdb"))
        #expect(scope.stopAwaiting("vm1/vda") && !scope.isAskedFor("vm1/vda"))
        scope.awaitNames([])
        #expect(!scope.isAskedFor("vm1/vda"))
    }
}
