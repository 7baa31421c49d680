import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// Disks that go to another server or come from one: what a server finds that is killed at any of
/// the steps.
@Suite struct MoveOrderTests {
    /// State directories as they were at the steps, and whether the file was there.
    private final class Snapshots: Sendable {
        struct Snapshot: Sendable {
            let step: String
            let directory: String
            let hasFile: Bool
        }
        private let kept = Mutex<[Snapshot]>([])
        private let fixture: ControlFixture
        private let file: String

        init(_ fixture: ControlFixture, _ file: String) {
            self.fixture = fixture
            self.file = file
        }

        var all: [Snapshot] { kept.withLock { $0 } }

        func take(_ step: String) {
            let directory = fixture.root + "/at-\(step)-\(all.count)"
            try? FileManager.default.copyItem(
                atPath: fixture.stateDirectory, toPath: directory)
            let hasFile = FileManager.default.fileExists(atPath: file)
            kept.withLock {
                $0.append(Snapshot(step: step, directory: directory, hasFile: hasFile))
            }
        }
    }

    /// The server that comes after a kill, over a copy of the state directory.
    private func restarted(
        _ directory: String, _ fixture: ControlFixture, unusable: Set<String> = []
    ) async throws -> (manager: JobManager, engine: FakeEngine) {
        let engine = FakeEngine()
        engine.change { $0.unusablePaths = unusable }
        let settings = JobManagerSettings(
            runDirectory: fixture.runDirectory,
            liveEndpoint: .unix(path: fixture.runDirectory + "/live.sock", mode: 0o600))
        let manager = JobManager(
            engine: engine, state: try StateDirectory(path: directory), settings: settings)
        await manager.activate()
        _ = await manager.restore()
        return (manager, engine)
    }

    @Test(
        "P3: a server that is killed in the midst of an export serves the disks, or there is a file"
    )
    func export() async throws {
        let fixture = try ControlFixture()
        let file = fixture.root + "/vm1.state"
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        try await manager.createCheckpoint(
            domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
        let snapshots = Snapshots(fixture, file)
        fixture.engine.change { $0.onMove = { snapshots.take($0) } }
        let move = try await manager.exportState(of: "vm1", disks: [], to: file)
        #expect(move.disks.map(\.disk) == ["vda", "vdb"])
        snapshots.take("after")
        #expect(
            snapshots.all.map(\.step) == ["pack", "pack", "give up", "give up", "after"])
        for snapshot in snapshots.all {
            let (next, engine) = try await restarted(snapshot.directory, fixture)
            let isServed = engine.attachedCount == 2
            #expect(engine.attachedCount == (isServed ? 2 : 0), "\(snapshot.step)")
            #expect(isServed == (snapshot.step == "pack"), "\(snapshot.step)")
            #expect(snapshot.hasFile == (snapshot.step == "after"), "\(snapshot.step)")
            let again = fixture.root + "/again-\(UUID().uuidString)"
            let repeated = try await next.exportState(of: "vm1", disks: [], to: again)
            #expect(repeated.disks.map(\.generation) == [1, 1])
            #expect((repeated.id == move.id) == !isServed, "\(snapshot.step)")
            #expect(engine.attachedCount == 0)
        }
        // Nothing opens them, not even who asks for them.
        _ = try await manager.disks(of: "vm1")
        #expect(fixture.engine.attachedCount == 0)
        await #expect(throws: ControlError.self) {
            try await manager.createCheckpoint(domain: "vm1", xml: "<domaincheckpoint/>")
        }
    }

    @Test("P3: a server that is killed in the midst of an import goes on with it")
    func arrival() async throws {
        let fixture = try ControlFixture()
        let file = fixture.root + "/vm1.state"
        let uuid = "6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001"
        let xml = fixture.domainXML().replacing(
            "<name>vm1</name>", with: "<name>vm1</name><uuid>\(uuid)</uuid>")
        let source = try ControlFixture()
        let first = try await source.manager(stored: true)
        try await first.define(xml: xml)
        try await first.createCheckpoint(
            domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
        _ = try await first.exportState(of: "vm1", disks: [], to: file)

        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: xml)
        let snapshots = Snapshots(fixture, file)
        fixture.engine.change { $0.onMove = { snapshots.take($0) } }
        let request = JobManager.ImportRequest(file: file, isUnchanged: true)
        _ = try await manager.importState(of: "vm1", request)
        #expect(snapshots.all.map(\.step) == ["adopt", "adopt"])
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
        #expect(fixture.engine.attachedCount == 2)
        await #expect(throws: ControlError.self) {
            try await manager.importState(of: "vm1", request)
        }
        for snapshot in snapshots.all {
            let (next, engine) = try await restarted(snapshot.directory, fixture)
            #expect(engine.attachedCount == 2)
            _ = try await next.importState(of: "vm1", request)
            #expect(try await next.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
            await #expect(throws: ControlError.self) {
                try await next.importState(of: "vm1", request)
            }
        }
    }

    @Test(
        "P3: a record of moves that cannot be read keeps the disks from being served, and is told of",
        arguments: ["nbdpull-state 1 moves", "nbdpull-state 2 moves 00000000 0\n"])
    func unreadable(record: String) async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        _ = try await manager.exportState(
            of: "vm1", disks: ["vda"], to: fixture.root + "/vm1.state")
        let moves = fixture.stateDirectory + "/moves"
        let name = try #require(
            FileManager.default.contentsOfDirectory(atPath: moves).first)
        try Data(record.utf8).write(to: URL(fileURLWithPath: moves + "/" + name))
        let copy = fixture.root + "/copy"
        try FileManager.default.copyItem(atPath: fixture.stateDirectory, toPath: copy)
        let (next, engine) = try await restarted(copy, fixture)
        #expect(engine.attachedCount == 0)
        let disks = try await next.disks(of: "vm1")
        let advice =
            record.contains(" 1 ") ? "Move it away to serve them all" : "start the newer version"
        #expect(disks.prefix(2).allSatisfy { $0.errorMessage?.contains(advice) == true })
        // `/readyz` and `/v1/server` say so.
        let path = "\(copy)/moves/\(name)"
        let problems = await next.problems
        #expect(problems.count == 1)
        #expect(problems.first?.contains(path) == true, "\(problems)")
        #expect(
            next.events.recent.contains {
                $0.event == .stateProblem && $0.message?.contains(path) == true
            })
        try FileManager.default.removeItem(atPath: path)
        #expect(await next.problems.isEmpty)
    }

    private final class Door: Sendable {
        let isOpen = Mutex(false)
    }

    @Test("P3: a disk is not imported beside an attempt to open it, which comes to its end first")
    func besideAnOpening() async throws {
        let (source, fixture) = (try ControlFixture(), try ControlFixture())
        let file = fixture.root + "/vm1.moved"
        let xml = fixture.domainXML().replacing(
            "<name>vm1</name>",
            with: "<name>vm1</name><uuid>6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001</uuid>")
        let first = try await source.manager(stored: true)
        try await first.define(xml: xml)
        try await first.createCheckpoint(
            domain: "vm1", xml: "<domaincheckpoint><name>c1</name></domaincheckpoint>")
        _ = try await first.exportState(of: "vm1", disks: ["vda"], to: file)

        let before = try await fixture.manager(stored: true)
        try await before.define(xml: xml)
        let copy = fixture.root + "/copy"
        try FileManager.default.copyItem(atPath: fixture.stateDirectory, toPath: copy)
        let (manager, engine) = try await restarted(
            copy, fixture, unusable: [fixture.root + "/vm1-a.raw"])
        // From now on its storage does not answer.
        let door = Door()
        engine.change {
            $0.unusablePaths = []
            $0.onAttach = { name in
                // No longer than some seconds: who asks for the disk must come to an end.
                for _ in 0..<1000 where name == "vm1/vda" && !door.isOpen.withLock({ $0 }) {
                    try? await Task.sleep(for: .milliseconds(10))
                }
            }
        }
        let request = JobManager.ImportRequest(file: file, isUnchanged: true)
        let error = await #expect(throws: ControlError.self) {
            try await manager.importState(of: "vm1", request)
        }
        #expect(error?.code == "domain-changing")
        #expect(engine.look { $0.terms == nil })
        door.isOpen.withLock { $0 = true }
        #expect(try await eventually { engine.attachedCount == 2 })
        _ = try await manager.importState(of: "vm1", request)
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
    }

    @Test("P3: a count of moves that no file may have ends nothing but the export")
    func tooManyMoves() async throws {
        let fixture = try ControlFixture()
        let uuid = "6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001"
        let most: UInt64 = 1 << 32
        for generation in [UInt64.max, most, most - 1] {
            let root = "\(fixture.root)/\(generation)"
            do {
                let state = try StateDirectory(path: root)
                try state.save(
                    [StoredMove(disk: "vda", generation: generation, move: "m", phase: .here)],
                    of: uuid)
                state.release()
            }
            let (manager, _) = try await restarted(root, fixture)
            try await manager.define(
                xml: fixture.domainXML().replacing(
                    "<name>vm1</name>", with: "<name>vm1</name><uuid>\(uuid)</uuid>"))
            let error = await #expect(throws: ControlError.self) {
                try await manager.exportState(
                    of: "vm1", disks: ["vda"], to: fixture.root + "/vm1.moved")
            }
            #expect(error?.code == "disk-cannot-move")
            #expect(error?.message.contains("moved \(generation) times") == true)
        }
    }
}
