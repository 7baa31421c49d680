import Control
import Foundation
import ServerInterface
import Testing

/// A checkpoint of this name and of `inner`.
func checkpointXML(_ name: String, _ inner: String = "") -> String {
    "<domaincheckpoint><name>\(name)</name>\(inner)</domaincheckpoint>"
}

extension ControlFixture {
    /// A stored manager with `vm1` defined and these checkpoints made in turn.
    func managerWithCheckpoints(_ names: String...) async throws -> JobManager {
        let manager = try await manager(stored: true)
        try await manager.define(xml: domainXML())
        for name in names {
            try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML(name))
        }
        return manager
    }

    /// The engine's chains, by target.
    var chains: [String: [String]] {
        Dictionary(
            uniqueKeysWithValues: engine.look { $0.chains }.map {
                (($0.key as NSString).lastPathComponent, $0.value)
            })
    }

    /// Changes the engine's chain of one disk, as damage would.
    func changeChain(_ target: String, _ body: @Sendable @escaping (inout [String]) -> Void) {
        engine.change { state in
            for key in state.chains.keys where key.hasSuffix("/" + target) {
                body(&state.chains[key, default: []])
            }
        }
    }

    /// Names of the checkpoint files.
    var checkpointFiles: [String] {
        let places = FileManager.default.enumerator(atPath: stateDirectory + "/checkpoints")
        let paths = (places?.allObjects ?? []).compactMap { $0 as? String }
        return paths.filter { $0.contains(".state") }
            .map { ($0 as NSString).lastPathComponent }.sorted()
    }

    /// Waits for the lock of a manager that was dropped, and starts another over the same engine.
    func restarted() async throws -> (manager: JobManager, warnings: [String]) {
        #expect(try await eventually { (try? StateDirectory(path: stateDirectory)) != nil })
        engine.change { $0.attached = [:] }
        let manager = try await manager(stored: true)
        return (manager, await manager.restore())
    }
}

@Suite struct CheckpointManagerTests {
    @Test func aChainIsMadeListedAndDeleted() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1", "c2", "c3")
        #expect(fixture.chains == ["vda": ["c1", "c2", "c3"], "vdb": ["c1", "c2", "c3"]])
        let list = try await manager.listCheckpoints(of: "vm1")
        #expect(list.map(\.name) == ["c1", "c2", "c3"])
        #expect(list.map(\.parent) == [nil, "c1", "c2"])
        #expect(list.map(\.descendants) == [2, 1, 0])
        #expect(list.map(\.current) == [false, false, true])
        #expect(list[0].disks.map(\.usable) == [true, true, false])
        #expect(try await manager.checkpointParent("c2", of: "vm1").name == "c1")
        let root = await #expect(throws: ControlError.self) {
            try await manager.checkpointParent("c1", of: "vm1")
        }
        #expect(
            root?.message == "Domain checkpoint not found: checkpoint 'c1' does not have a parent")
        await expectError("checkpoint-exists") {
            try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c1"))
        }
        try await manager.deleteCheckpoint("c2", of: "vm1")
        #expect(try await manager.checkpoint("c3", of: "vm1").parent == "c1")
        #expect(fixture.chains["vda"] == ["c1", "c3"])
        #expect(fixture.checkpointFiles == ["c1.state", "c3.state"])
        try await manager.deleteCheckpoint("c1", of: "vm1", scope: .descendantsOnly)
        #expect(fixture.chains["vdb"] == ["c1"])
        try await manager.deleteCheckpoint("c1", of: "vm1", scope: .withDescendants)
        #expect(fixture.checkpointFiles == [])
        await expectError("checkpoint-not-found") {
            try await manager.deleteCheckpoint("c1", of: "vm1")
        }
        let kinds = manager.events.recent.map(\.event)
        #expect(kinds.count { $0 == .checkpointCreated } == 3)
        #expect(kinds.count { $0 == .checkpointDeleted } == 3)
    }

    @Test func sizesAreGivenWhereTheBitmapIsValid() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.changeChain("vdb") { $0 = [] }
        let body = try await manager.checkpointXML("c1", of: "vm1", withSizes: true)
        #expect(
            body.xml.contains(
                "<disk name='vda' checkpoint='bitmap' bitmap='c1' size='131072'/>\n"))
        #expect(body.xml.contains("<disk name='vdb' checkpoint='bitmap' bitmap='c1'/>\n"))
        #expect(body.xml.contains("<disk name='sda' checkpoint='no'/>\n"))
        #expect(body.xml.contains("<domain type='kvm'>"))
        #expect(body.disks?[0].extents == [DirtyExtent(offset: 65_536, length: 65_536)])
        #expect(body.disks?[0].extentsCut == true)
        #expect(body.disks?[1].size == nil)
        let plain = try await manager.checkpointXML("c1", of: "vm1", withDomain: false)
        #expect(!plain.xml.contains("size=") && !plain.xml.contains("<domain "))
        #expect(plain.disks == nil)
    }

    @Test func aRefusedCreateLeavesNothing() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.engine.change { $0.createFault = .holdTimedOut(milliseconds: 5) }
        await expectError("hold-timed-out") {
            try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c2"))
        }
        #expect(fixture.checkpointFiles == ["c1.state"])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
        fixture.engine.change { $0.createFault = nil }
        try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c2"))
        #expect(try await manager.checkpoint("c2", of: "vm1").parent == "c1")
    }

    @Test func aRefusedDeleteChangesNothing() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1", "c2")
        fixture.engine.change { $0.deleteFault = .limitReached(what: "x", limit: 1) }
        await expectError("limit-reached") {
            try await manager.deleteCheckpoint("c1", of: "vm1")
        }
        #expect(try await manager.checkpoint("c2", of: "vm1").parent == "c1")
        fixture.engine.change { $0.deleteFault = nil }
        await manager.shutdown()
        _ = consume manager
        let again = try await fixture.restarted().manager
        #expect(try await again.checkpoint("c2", of: "vm1").parent == "c1")
    }

    @Test func manyAtOnceMakeOneChain() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        await withTaskGroup(of: Void.self) { tasks in
            for number in 0..<20 {
                tasks.addTask {
                    _ = try? await manager.createCheckpoint(
                        domain: "vm1", xml: checkpointXML("c\(number)"))
                }
            }
        }
        let list = try await manager.listCheckpoints(of: "vm1")
        #expect(list.count == 20)
        #expect(list.map(\.descendants).sorted() == Array(0..<20))
    }

    @Test func checkpointsComeBackAfterARestart() async throws {
        let fixture = try ControlFixture()
        do { _ = try await fixture.managerWithCheckpoints("c1", "c2", "c3") }
        let (manager, warnings) = try await fixture.restarted()
        #expect(warnings == [])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.parent) == [nil, "c1", "c2"])
        #expect(fixture.chains["vda"] == ["c1", "c2", "c3"])
    }

    @Test func aTornFileCostsThatCheckpointOnly() async throws {
        let fixture = try ControlFixture()
        do { _ = try await fixture.managerWithCheckpoints("c1", "c2", "c3") }
        let uuid = try #require(
            FileManager.default.contentsOfDirectory(
                atPath: fixture.stateDirectory + "/checkpoints"
            ).first)
        let path = fixture.stateDirectory + "/checkpoints/\(uuid)/c2.state"
        try Data("torn".utf8).write(to: URL(fileURLWithPath: path))
        let (manager, warnings) = try await fixture.restarted()
        #expect(warnings.count == 1)
        #expect(warnings.first?.contains(path) == true)
        let list = try await manager.listCheckpoints(of: "vm1")
        #expect(list.map(\.name) == ["c1", "c3"])
        #expect(list.map(\.parent) == [nil, nil])
        // Its bitmaps stay, so that a redefinition brings it back.
        #expect(fixture.chains["vda"] == ["c1", "c2", "c3"])
        let xml = checkpointXML("c2", "<creationTime>5</creationTime>")
        let view = try await manager.createCheckpoint(domain: "vm1", xml: xml, redefine: true)
        #expect(view.disks.map(\.usable) == [true, true, false])
    }

    @Test func whatACrashCutOffIsUndone() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1", "c2")
            let uuid = await manager.listDomains()[0].uuid
            await manager.shutdown()
            _ = consume manager
            #expect(
                try await eventually { (try? StateDirectory(path: fixture.stateDirectory)) != nil })
            let state = try StateDirectory(path: fixture.stateDirectory)
            try state.save(CheckpointMetadata(name: "new", phase: .pending), of: uuid)
            try state.removeCheckpoint("c1", of: uuid)
        }
        fixture.changeChain("vda") { $0.append("new") }
        fixture.changeChain("vdb") { $0.removeAll { $0 == "c2" } }
        let (manager, warnings) = try await fixture.restarted()
        #expect(warnings == [])
        #expect(fixture.chains == ["vda": ["c2"], "vdb": []])
        #expect(fixture.checkpointFiles == ["c2.state"])
        let list = try await manager.listCheckpoints(of: "vm1")
        #expect(list.map(\.name) == ["c2"])
        #expect(list[0].disks.map(\.usable) == [true, false, false])
    }

    @Test func metadataAloneIsDeletedAndRedefined() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1", "c2")
            try await manager.deleteCheckpoint("c1", of: "vm1", metadataOnly: true)
            #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c2"])
        }
        let (manager, _) = try await fixture.restarted()
        #expect(fixture.chains["vda"] == ["c1", "c2"])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c2"])
        #expect(try await manager.disks(of: "vm1")[0].checkpoints == ["c2"])
        let xml = checkpointXML("c1", "<creationTime>5</creationTime>")
        try await manager.createCheckpoint(domain: "vm1", xml: xml, redefine: true)
        let child = checkpointXML(
            "c2", "<creationTime>6</creationTime><parent><name>c1</name></parent>")
        try await manager.createCheckpoint(domain: "vm1", xml: child, redefine: true)
        #expect(try await manager.checkpoint("c1", of: "vm1").children == 1)
        // A new checkpoint of a forgotten one's name replaces the bitmaps left.
        try await manager.deleteCheckpoint("c1", of: "vm1", metadataOnly: true)
        try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c1"))
        #expect(fixture.chains["vda"] == ["c2", "c1"])
    }

    @Test func aRedefinedCheckpointWithoutBitmapsIsListedOnly() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        let xml = checkpointXML("old", "<creationTime>5</creationTime>")
        let view = try await manager.createCheckpoint(domain: "vm1", xml: xml, redefine: true)
        #expect(view.disks.map(\.usable) == [false, false, false])
        let error = await #expect(throws: ControlError.self) {
            try await manager.begin(
                domain: "vm1", BeginRequest(backupXML: pullXML("<incremental>old</incremental>")))
        }
        #expect(error?.libvirtCode == 109)
        #expect(
            error?.message
                == "checkpoint inconsistent: missing or broken bitmap 'old' for disk 'vda'")
        try await manager.deleteCheckpoint("old", of: "vm1")
    }

    @Test func aDomainWithCheckpointsGoesOnlyWithThem() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1", "c2")
        for disk in fixture.engine.look({ $0.attached }).values {
            let directory = try #require(disk.tracking?.directory)
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
        }
        let error = await #expect(throws: ControlError.self) {
            try await manager.undefine("vm1")
        }
        #expect(error?.libvirtCode == 55)
        #expect(
            error?.message == "Requested operation is not valid: cannot delete inactive domain "
                + "with 2 checkpoints")
        try await manager.undefine("vm1", removingCheckpoints: true)
        #expect(await manager.listDomains().isEmpty)
        for part in ["checkpoints", "disks", "domains"] {
            let left = try FileManager.default.contentsOfDirectory(
                atPath: fixture.stateDirectory + "/" + part)
            #expect(left.isEmpty)
        }
    }

    @Test func everyWritableDiskIsTrackedWithItsGranularity() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        await expectError("invalid-argument") {
            try await manager.define(xml: fixture.domainXML(), granularityBytes: 5000)
        }
        let view = try await manager.define(xml: fixture.domainXML(), granularityBytes: 4096)
        try await manager.define(xml: fixture.domainXML("vm2"))
        let found = fixture.engine.look { $0.attached }.values.sorted {
            $0.exportName < $1.exportName
        }
        #expect(
            found[0].tracking
                == TrackingConfiguration(
                    directory: "\(fixture.stateDirectory)/disks/\(view.uuid)/vda",
                    granularityBytes: 4096))
        #expect(found[2].tracking?.granularityBytes == 65_536)
        await manager.shutdown()
        _ = consume manager
        _ = try await fixture.restarted()
        let again = fixture.engine.look { $0.attached }.values.filter {
            $0.exportName == "vm1/vdb"
        }
        #expect(again.first?.tracking?.granularityBytes == 4096)
    }

    @Test func twoDomainsNeverShareAUUID() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        let first = DomainDefinition(name: "a", disks: [.init(target: "vda", path: "/a")])
        let xml = first.xml.split(separator: "<name>a</name>").joined(separator: "<name>b</name>")
        let second = try DomainDefinition.parse(xml)
        let warnings = await manager.restore([
            StartDomain(definition: first, isStored: false),
            StartDomain(definition: second, isStored: false),
        ])
        #expect(warnings.count == 1)
        #expect(warnings.first?.contains("domain 'b' is left out") == true)
        #expect(await manager.listDomains().map(\.domain) == ["a"])
        let stable = "<domain><name>s</name></domain>"
        #expect(
            try DomainDefinition.parse(stable, hasStableUUID: true).uuid
                == UUIDText.derived(fromDomain: "s"))
    }

    @Test func trackingIsShownAndItsTroublesAreEvents() async throws {
        let fixture = try ControlFixture()
        fixture.engine.change {
            $0.recoveredBytes = 8192
            $0.trackingProblem = "the source has shrunk"
        }
        let manager = try await fixture.managerWithCheckpoints("c1")
        let disks = try await manager.disks(of: "vm1")
        #expect(disks[0].checkpoints == ["c1"])
        #expect(disks[0].dirtyBytes == 4096)
        #expect(disks[0].recoveredBytes == 8192)
        #expect(disks[0].trackingProblem == "the source has shrunk")
        #expect(disks[2].checkpoints == nil)
        let events = manager.events.recent
        #expect(events.count { $0.event == .trackingRecovered && $0.usedBytes == 8192 } == 2)
        #expect(events.count { $0.event == .trackingProblem } == 2)
    }
}
