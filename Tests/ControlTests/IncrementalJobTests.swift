import Control
import Foundation
import ServerInterface
import Testing

@Suite struct IncrementalJobTests {
    private func begin(
        _ manager: JobManager, _ inner: String = "", checkpoint: String? = nil,
        fallback: Bool = false
    ) async throws -> BegunJob {
        try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: pullXML(inner), checkpointXML: checkpoint.map { checkpointXML($0) },
                fallsBackToFull: fallback))
    }

    @Test func anIncrementalJobOffersItsBitmaps() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1", "c2")
        let job = try await begin(
            manager,
            """
            <incremental>c2</incremental><disks><disk name='vda' incremental='c1'/>
            <disk name='vdb' exportbitmap='mine'/></disks>
            """, checkpoint: "c3")
        #expect(job.exports.map(\.bitmap) == ["backup-vda", "mine"])
        #expect(job.checkpoint == "c3")
        let configuration = try #require(fixture.engine.look { $0.jobs[job.id] })
        #expect(
            configuration.disks.map(\.incremental) == [
                IncrementalConfiguration(checkpoint: "c1", bitmap: "backup-vda"),
                IncrementalConfiguration(checkpoint: "c2", bitmap: "mine"),
            ])
        #expect(configuration.checkpoint?.name == "c3")
        #expect(configuration.checkpoint?.disks.count == 2)
        #expect(configuration.disks[0].scratch.path.hasSuffix("vm1-a.raw.c3"))
        let xml = try await manager.backupXML(domain: "vm1", job: nil).xml
        #expect(xml.contains("backupmode='incremental' incremental='c1' exportname='vda'"))
        // The base of a running job may go.
        try await manager.deleteCheckpoint("c1", of: "vm1")
        try await manager.end(domain: "vm1", job: nil, cause: .success)
        let list = try await manager.listCheckpoints(of: "vm1")
        #expect(list.map(\.name) == ["c2", "c3"])
        #expect(list.map(\.parent) == [nil, "c2"])
    }

    @Test func anUnknownBaseAndABrokenOneHaveTheirNumbers() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.changeChain("vdb") { $0 = [] }
        let unknown = await #expect(throws: ControlError.self) {
            try await begin(manager, "<incremental>nope</incremental>", checkpoint: "c2")
        }
        #expect(unknown?.libvirtCode == 103)
        let broken = await #expect(throws: ControlError.self) {
            try await begin(manager, "<incremental>c1</incremental>", checkpoint: "c2")
        }
        #expect(broken?.libvirtCode == 109)
        #expect(
            broken?.message
                == "checkpoint inconsistent: missing or broken bitmap 'c1' for disk 'vdb'")
        #expect(fixture.checkpointFiles == ["c1.state"])
        #expect(fixture.chains["vda"] == ["c1"])
    }

    @Test func withFallbackOnlyTheBrokenDiskIsFull() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.changeChain("vdb") { $0 = [] }
        fixture.engine.change { $0.trackingProblem = "torn layer" }
        let job = try await begin(manager, "<incremental>c1</incremental>", fallback: true)
        let reason = "the disk's chain does not hold checkpoint 'c1': torn layer"
        #expect(job.exports.map(\.bitmap) == ["backup-vda", nil])
        #expect(job.exports.map(\.fallbackReason) == [nil, reason])
        #expect(
            ConsoleText.begun(job).hasSuffix("disk 'vdb' is backed up in full: \(reason)\n"))
        let body = try await manager.backupXML(domain: "vm1", job: nil)
        #expect(body.exports.map(\.fallbackReason) == [nil, reason])
        #expect(body.xml.contains("backupmode='full' exportname='vdb' index="))
        let unknown = await #expect(throws: ControlError.self) {
            try await begin(manager, "<incremental>nope</incremental>", fallback: true)
        }
        #expect(unknown?.libvirtCode == 103)
    }

    @Test func aChainThatBreaksAtTheLastMomentFallsBackToo() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.engine.change { state in
            state.onBegin = { [weak engine = fixture.engine] _ in
                engine?.change { state in
                    for key in state.chains.keys where key.hasSuffix("vda") {
                        state.chains[key] = []
                    }
                }
            }
        }
        let error = await #expect(throws: ControlError.self) {
            try await begin(manager, "<incremental>c1</incremental>", checkpoint: "c2")
        }
        #expect(error?.libvirtCode == 109)
        #expect(fixture.checkpointFiles == ["c1.state"])
        fixture.changeChain("vda") { $0 = ["c1"] }
        let job = try await begin(manager, "<incremental>c1</incremental>", fallback: true)
        #expect(job.exports.map(\.fallbackReason) == ["broken at the last moment", nil])
        #expect(job.exports.map(\.bitmap) == [nil, "backup-vdb"])
    }

    @Test func aRefusedBeginLeavesNoCheckpoint() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.engine.change {
            $0.beginFault = .cannotListen(endpoint: "x", errorText: "Address already in use")
        }
        await expectError("cannot-listen") { try await begin(manager, checkpoint: "c2") }
        #expect(fixture.checkpointFiles == ["c1.state"])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
        fixture.engine.change { $0.beginFault = nil }
        await expectError("checkpoint-exists") { try await begin(manager, checkpoint: "c1") }
        await expectError("disk-not-found") {
            try await manager.begin(
                domain: "vm1",
                BeginRequest(
                    checkpointXML: checkpointXML("c2", "<disks><disk name='vdz'/></disks>")))
        }
        #expect(try await manager.listJobs(domain: nil).isEmpty)
    }
}
