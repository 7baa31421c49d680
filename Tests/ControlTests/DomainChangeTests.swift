import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// Domains change while they are served.
@Suite struct DomainChangeTests {
    private static let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"

    private static func disk(_ target: String, _ path: String, _ more: String = "") -> String {
        """
        <disk type='file' device='disk'><driver type='raw'/><source file='\(path)'/>\
        <target dev='\(target)'/>\(more)</disk>
        """
    }

    /// A domain with disks `vda` and `vdb`, or with what `disks` says.
    private static func xml(_ fixture: ControlFixture, _ disks: [String]? = nil) -> String {
        let standard = ["vda", "vdb"].map { disk($0, "\(fixture.root)/\($0).raw") }
        return """
            <domain><name>vm1</name><uuid>\(uuid)</uuid>
              <description>kept</description>
              <devices>
                \((disks ?? standard).joined(separator: "\n    "))
              </devices>
            </domain>
            """
    }

    /// A manager with the domain, a checkpoint of both disks, and a machine on `vda`.
    private static func start(
        stored: Bool = true
    ) async throws -> (ControlFixture, JobManager) {
        let fixture = try ControlFixture()
        fixture.engine.change { $0.keepsChainsInDirectories = true }
        let manager = try await fixture.manager(stored: stored)
        try await manager.define(xml: xml(fixture))
        _ = try await manager.createCheckpoint(
            domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
        fixture.engine.change { $0.clients["vm1/vda"] = 1 }
        return (fixture, manager)
    }

    /// What never changes for the machine on `vda`.
    private static func expectUntouched(
        _ fixture: ControlFixture, _ manager: JobManager, id: DiskID?
    ) async throws {
        let found = fixture.engine.look { state in
            state.attached.first { $0.value.exportName == "vm1/vda" }?.key
        }
        #expect(found == id && id != nil, "vda was closed")
        #expect(fixture.engine.look { $0.clients["vm1/vda"] } == 1)
        #expect(try await manager.disks(of: "vm1").first?.checkpoints == ["c1"])
    }

    private static func vda(_ fixture: ControlFixture) -> DiskID? {
        fixture.engine.look { state in
            state.attached.first { $0.value.exportName == "vm1/vda" }?.key
        }
    }

    private static func exports(_ fixture: ControlFixture) -> [String] {
        fixture.engine.look { $0.attached.values.map(\.exportName).sorted() }
    }

    @Test("a disk is added, removed and changed while a machine uses another, whose chain goes on")
    func disksComeAndGo() async throws {
        let (fixture, manager) = try await Self.start()
        let id = Self.vda(fixture)
        let added = try await manager.attachDisk(
            xml: Self.disk("vdc", "\(fixture.root)/c.raw"), to: "vm1")
        #expect(added.uri != nil)
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb", "vm1/vdc"])
        try await Self.expectUntouched(fixture, manager, id: id)

        _ = try await manager.updateDisk(
            xml: Self.disk("vdb", "\(fixture.root)/other.raw"), of: "vm1")
        #expect(
            fixture.engine.look { state in
                state.attached.values.contains { $0.path == "\(fixture.root)/other.raw" }
            })
        try await manager.detachDisk("\(fixture.root)/c.raw", from: "vm1")
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        try await Self.expectUntouched(fixture, manager, id: id)
        let text = try await manager.domainXML("vm1")
        #expect(text.contains("<description>kept</description>") && text.contains("other.raw"))
        let kinds = manager.events.recent.map(\.event)
        #expect(kinds.contains(.domainChanged) && kinds.contains(.diskDetached))
    }

    @Test("what was changed is there after a restart")
    func changesAreKept() async throws {
        let (fixture, manager) = try await Self.start()
        _ = try await manager.attachDisk(
            xml: Self.disk("vdc", "\(fixture.root)/c.raw"), to: "vm1")
        try await manager.detachDisk("vdb", from: "vm1")
        let text = try await manager.domainXML("vm1")
        await manager.shutdown()
        let kept = try FileManager.default.contentsOfDirectory(
            atPath: fixture.stateDirectory + "/domains")
        #expect(kept == ["\(Self.uuid).state"])
        let bytes = try Data(
            contentsOf: URL(
                fileURLWithPath: fixture.stateDirectory + "/domains/\(Self.uuid).state"))
        let record = try StateRecord.decode(
            kind: "domain", StoredDomain.self, from: Array(bytes))
        #expect(record.xml == text)
        #expect(
            try DomainDefinition.kept(record.xml).definition.disks.map(\.target)
                == ["vda", "vdc"])
    }

    @Test("P3: a disk that comes back under a name begins a new chain")
    func newChain() async throws {
        let (fixture, manager) = try await Self.start()
        try await manager.detachDisk("vdb", from: "vm1")
        let directory = fixture.stateDirectory + "/disks/\(Self.uuid)/vdb"
        #expect(!FileManager.default.fileExists(atPath: directory))
        // What a crash left behind is not believed either.
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        let back = try await manager.attachDisk(
            xml: Self.disk("vdb", "\(fixture.root)/vdb.raw"), to: "vm1")
        #expect(back.checkpoints == [])
        #expect(
            try await manager.checkpoint("c1", of: "vm1").disks.map(\.usable) == [true, false])
    }

    @Test("define of the same domain changes only what differs")
    func redefine() async throws {
        let (fixture, manager) = try await Self.start()
        let id = Self.vda(fixture)
        let vdb = fixture.engine.look { $0.attached.first { $0.key != id }?.key }
        // The same disks, another text.
        try await manager.define(
            xml: Self.xml(fixture).replacing("kept", with: "changed"))
        #expect(fixture.engine.look { state in vdb.map { state.attached[$0] != nil } } == true)
        #expect(try await manager.domainXML("vm1").contains("changed"))
        // Without a uuid it is the domain of that name.
        let view = try await manager.define(
            xml: Self.xml(
                fixture,
                [
                    Self.disk("vda", "\(fixture.root)/vda.raw"),
                    Self.disk("vdb", "\(fixture.root)/vdb.raw").replacing(
                        "type='raw'", with: "type='raw' cache='none'"),
                    Self.disk("vdd", "\(fixture.root)/d.raw"),
                ]
            ).replacing("<uuid>\(Self.uuid)</uuid>", with: ""))
        #expect(view.uuid == Self.uuid && view.disks == 3)
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb", "vm1/vdd"])
        try await Self.expectUntouched(fixture, manager, id: id)
        // The cache mode changed, the source did not: the chain goes on.
        #expect(try await manager.disks(of: "vm1")[1].checkpoints == ["c1"])
    }

    @Test("P2: a machine's disk is not pulled from under it unless forced")
    func inUse() async throws {
        let (fixture, manager) = try await Self.start()
        let id = Self.vda(fixture)
        fixture.engine.change { $0.clients["vm1/vda"] = 2 }
        let changed = Self.xml(fixture, [Self.disk("vdb", "\(fixture.root)/vdb.raw")])
        let other = Self.disk("vda", "\(fixture.root)/x.raw")
        for attempt in [
            { try await manager.undefine("vm1", removingCheckpoints: true) },
            { try await manager.detachDisk("vda", from: "vm1") },
            { _ = try await manager.updateDisk(xml: other, of: "vm1") },
            { _ = try await manager.define(xml: changed) },
        ] as [@Sendable () async throws -> Void] {
            let error = await #expect(throws: ControlError.self) { try await attempt() }
            #expect(error?.code == "disk-in-use")
            #expect(
                error?.message
                    == "Requested operation is not valid: domain 'vm1' is in use: disk 'vda' has 2 "
                    + "clients: shut the machine down first, or give --force to disconnect it")
        }
        fixture.engine.change { $0.clients["vm1/vda"] = 1 }
        try await Self.expectUntouched(fixture, manager, id: id)
        #expect(try await manager.domainXML("vm1") == Self.xml(fixture))
        _ = try await manager.updateDisk(xml: other, of: "vm1", force: true)
        #expect(fixture.engine.look { $0.clients["vm1/vda"] } == nil)
        try await manager.undefine("vm1", removingCheckpoints: true, force: true)
        #expect(fixture.engine.attachedCount == 0)
    }

    @Test("a client that comes between the look and the close is not dropped")
    func clientComesLate() async throws {
        let (fixture, manager) = try await Self.start()
        let engine = fixture.engine
        engine.change {
            $0.onDetach = { [weak engine] name in
                if name == "vm1/vdb" { engine?.change { $0.clients["vm1/vdb"] = 1 } }
            }
        }
        await expectError("disk-in-use") { try await manager.detachDisk("vdb", from: "vm1") }
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        #expect(try await manager.disks(of: "vm1").allSatisfy { $0.errorMessage == nil })
    }

    @Test("a disk in a job is not changed, and the job is named")
    func inJob() async throws {
        let (fixture, manager) = try await Self.start()
        let job = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: """
                    <domainbackup mode='pull'>
                      <server transport='unix' socket='\(fixture.root)/j.sock'/>
                      <disks><disk name='vdb'/></disks></domainbackup>
                    """))
        for attempt in [
            { try await manager.detachDisk("vdb", from: "vm1", force: true) },
            { _ = try await manager.resizeDisk("vdb", of: "vm1", sizeBytes: 1 << 30) },
        ] as [@Sendable () async throws -> Void] {
            let error = await #expect(throws: ControlError.self) { try await attempt() }
            #expect(error?.code == "disk-in-job")
            #expect(error?.message.contains(job.id) == true)
        }
        // The others may.
        _ = try await manager.attachDisk(
            xml: Self.disk("vdc", "\(fixture.root)/c.raw"), to: "vm1")
        _ = try await manager.resizeDisk("vda", of: "vm1", sizeBytes: 2 << 20)
        try await manager.end(domain: "vm1", job: nil, cause: .success)
        try await manager.detachDisk("vdb", from: "vm1")
    }

    @Test("a change that fails at any step leaves the domain as it was")
    func failedChanges() async throws {
        let (fixture, manager) = try await Self.start()
        let id = Self.vda(fixture)
        let before = try await manager.domainXML("vm1")
        let bad = "\(fixture.root)/bad.raw"
        fixture.engine.change { $0.unusablePaths = [bad] }
        let changed = Self.xml(
            fixture,
            [
                Self.disk("vda", "\(fixture.root)/vda.raw"),
                Self.disk("vdb", "\(fixture.root)/b2.raw"), Self.disk("vdc", bad),
            ])
        await expectError("source-unusable") { try await manager.define(xml: changed) }
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        #expect(try await manager.domainXML("vm1") == before)
        #expect(
            fixture.engine.look { state in
                state.attached.values.contains { $0.path == "\(fixture.root)/vdb.raw" }
            })
        // The state directory takes nothing.
        let domains = fixture.stateDirectory + "/domains"
        try FileManager.default.removeItem(atPath: domains)
        await expectError("state-not-written") {
            _ = try await manager.attachDisk(
                xml: Self.disk("vdc", "\(fixture.root)/c.raw"), to: "vm1")
        }
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        try FileManager.default.createDirectory(
            atPath: domains, withIntermediateDirectories: true)
        // The disk cannot be closed.
        fixture.engine.change {
            $0.detachFaults["vm1/vdb"] = (.diskBusy(name: "vm1/vdb"), false)
        }
        await expectError("disk-busy") { try await manager.detachDisk("vdb", from: "vm1") }
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        #expect(try await manager.disks(of: "vm1").allSatisfy { $0.errorMessage == nil })
        try await Self.expectUntouched(fixture, manager, id: id)
        try await manager.detachDisk("vdb", from: "vm1")
    }

    @Test(
        "P2: whoever looks at domains while a refused change is taken back sees them as they were")
    func lookedAtMeanwhile() async throws {
        let (fixture, manager) = try await Self.start()
        let bad = "\(fixture.root)/bad.raw"
        let looks = Notes()
        fixture.engine.change {
            $0.unusablePaths = [bad]
            $0.onAttach = { _ in looks.add("\(await manager.listDomains().count)") }
        }
        let changed = Self.xml(
            fixture, [Self.disk("vda", "\(fixture.root)/vda.raw"), Self.disk("vdb", bad)])
        await expectError("source-unusable") { try await manager.define(xml: changed) }
        // The new source, then the old one again.
        #expect(looks.all == ["1", "1"])
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
    }

    @Test("P3: a change that is refused for one disk has not begun another's chain anew")
    func refusedBeforeChains() async throws {
        let (fixture, manager) = try await Self.start()
        let bad = "\(fixture.root)/bad.raw"
        let opened = Notes()
        fixture.engine.change {
            $0.clients = [:]
            $0.unusablePaths = [bad]
            $0.onAttach = { opened.add($0) }
        }
        let changed = Self.xml(
            fixture,
            [Self.disk("vda", "\(fixture.root)/other.raw"), Self.disk("vdb", bad)])
        #expect(
            FileManager.default.createFile(
                atPath: "\(fixture.root)/other.raw", contents: Data(count: 512)))
        await expectError("source-unusable") { try await manager.define(xml: changed) }
        #expect(opened.all.first == "vm1/vdb")
        let disks = try await manager.disks(of: "vm1")
        #expect(disks.map(\.checkpoints) == [["c1"], ["c1"]])
    }

    @Test("an undefine that cannot close a disk keeps the domain where it is seen")
    func undefineThatFails() async throws {
        let (fixture, manager) = try await Self.start()
        fixture.engine.change {
            $0.clients = [:]
            $0.detachFaults["vm1/vdb"] = (.diskBusy(name: "vm1/vdb"), false)
        }
        await expectError("disk-busy") {
            try await manager.undefine("vm1", removingCheckpoints: true)
        }
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        #expect(await manager.listDomains().map(\.failedDisks) == [0])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
        try await manager.undefine("vm1", removingCheckpoints: true)
        #expect(fixture.engine.attachedCount == 0)
        #expect(await manager.listDomains().isEmpty)
    }

    @Test("a refused define that cannot close what it opened keeps it where it is seen")
    func defineThatFails() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        let bad = "\(fixture.root)/vdb.raw"
        fixture.engine.change {
            $0.unusablePaths = [bad]
            $0.detachFaults["vm1/vda"] = (.diskBusy(name: "vm1/vda"), false)
        }
        await expectError("source-unusable") { try await manager.define(xml: Self.xml(fixture)) }
        #expect(Self.exports(fixture) == ["vm1/vda"])
        #expect(await manager.listDomains().map(\.failedDisks) == [1])
        try await manager.undefine("vm1")
        #expect(fixture.engine.attachedCount == 0)
    }

    @Test("a disk that is closed with writes that are not durable is told of, and gone")
    func unflushed() async throws {
        let (fixture, manager) = try await Self.start()
        fixture.engine.change {
            $0.detachFaults["vm1/vdb"] = (
                .sourceUnusable(path: "/b", detail: "fdatasync: Input/output error"), true
            )
        }
        let error = await #expect(throws: ControlError.self) {
            try await manager.detachDisk("vdb", from: "vm1")
        }
        #expect(error?.code == "disk-not-flushed")
        #expect(error?.message.contains("Input/output error") == true)
        #expect(try await manager.disks(of: "vm1").map(\.disk) == ["vda"])
        #expect(try await manager.domainXML("vm1").contains("vdb") == false)
    }

    @Test("a disk is resized, by its target or its path, and who asks is told")
    func resize() async throws {
        let (fixture, manager) = try await Self.start()
        let id = Self.vda(fixture)
        let view = try await manager.resizeDisk("vda", of: "vm1", sizeBytes: 2 << 20)
        #expect(view.size == 2 << 20)
        #expect(
            try await manager.resizeDisk("\(fixture.root)/vdb.raw", of: "vm1", sizeBytes: nil).size
                == 4 << 20)
        try await Self.expectUntouched(fixture, manager, id: id)
        fixture.engine.change {
            $0.growFault = .resizeRefused(name: "vm1/vda", detail: "it cannot shrink")
        }
        await expectError("resize-refused") {
            _ = try await manager.resizeDisk("vda", of: "vm1", sizeBytes: 1)
        }
        await expectError("disk-not-found") {
            _ = try await manager.resizeDisk("vdz", of: "vm1", sizeBytes: 1)
        }
        #expect(manager.events.recent.count { $0.event == .diskResized } == 2)
    }

    @Test("a drive gets another medium, or none")
    func media() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        let medium = "\(fixture.root)/a & b.iso"
        let full = try await manager.changeMedia(of: "sda", in: "vm1", to: medium)
        #expect(full.source == medium && full.uri != nil && full.readOnly)
        let other = try await manager.changeMedia(
            of: medium, in: "vm1", to: "/dev/x", kind: .block)
        #expect(other.type == "block")
        let empty = try await manager.changeMedia(of: "sda", in: "vm1", to: nil)
        #expect(empty.source == nil && empty.errorMessage == nil)
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
        await expectError("disk-unsupported") {
            _ = try await manager.changeMedia(of: "vda", in: "vm1", to: medium)
        }
    }

    @Test("one change of a domain at a time; a begin meanwhile finds the disk in change")
    func races() async throws {
        let (fixture, manager) = try await Self.start()
        let gate = Gate()
        fixture.engine.change { $0.onAttach = { _ in await gate.wait() } }
        async let change = manager.updateDisk(
            xml: Self.disk("vdb", "\(fixture.root)/x.raw"), of: "vm1")
        #expect(await eventuallyTrue { await gate.isReached })
        await expectError("domain-changing") { try await manager.detachDisk("vda", from: "vm1") }
        await expectError("domain-changing") {
            try await manager.undefine("vm1", removingCheckpoints: true, force: true)
        }
        await expectError("domain-changing") { try await manager.define(xml: Self.xml(fixture)) }
        await expectError("disk-unavailable") {
            _ = try await manager.begin(domain: "vm1", BeginRequest())
        }
        #expect(try await manager.disks(of: "vm1")[1].errorMessage == "it is being changed")
        await gate.open()
        #expect(try await change.source == "\(fixture.root)/x.raw")
        #expect(Self.exports(fixture) == ["vm1/vda", "vm1/vdb"])
    }

    @Test("two defines with one uuid never both succeed")
    func oneUUID() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        let gate = Gate()
        fixture.engine.change { $0.onAttach = { _ in await gate.wait() } }
        let first = Self.xml(fixture)
        let second = first.replacing("<name>vm1", with: "<name>vm2")
            .replacing(".raw", with: "-2.raw")
        async let one = manager.define(xml: first)
        #expect(await eventuallyTrue { await gate.isReached })
        await expectError("domain-exists") { try await manager.define(xml: second) }
        await expectError("domain-changing") { try await manager.define(xml: first) }
        await gate.open()
        _ = try await one
        await expectError("domain-exists") { try await manager.define(xml: second) }
        #expect(await manager.listDomains().map(\.domain) == ["vm1"])
        // Nor while the first is being undefined.
        let slow = Gate()
        fixture.engine.change { $0.onDetach = { _ in await slow.wait() } }
        async let undefine: Void = manager.undefine("vm1")
        #expect(await eventuallyTrue { await slow.isReached })
        await expectError("domain-exists") { try await manager.define(xml: second) }
        await slow.open()
        try await undefine
        try await manager.define(xml: second)
    }
}

/// Holds everybody who comes by until it is opened.
actor Gate {
    private var waiting: [CheckedContinuation<Void, Never>] = []
    private var isOpen = false
    var isReached: Bool { !waiting.isEmpty }

    func wait() async {
        guard !isOpen else { return }
        await withCheckedContinuation { waiting.append($0) }
    }

    func open() {
        isOpen = true
        for continuation in waiting { continuation.resume() }
        waiting = []
    }
}

/// Like `eventually`, for what cannot throw.
func eventuallyTrue(_ condition: () async -> Bool) async -> Bool {
    for _ in 0..<500 {
        if await condition() { return true }
        try? await Task.sleep(for: .milliseconds(10))
    }
    return false
}

/// What a test was told, in its order.
private final class Notes: Sendable {
    private let lines = Mutex<[String]>([])
    func add(_ line: String) { lines.withLock { $0.append(line) } }
    var all: [String] { lines.withLock { $0 } }
}
