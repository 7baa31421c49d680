import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// Workers that say what a test wants.
final class ScriptedPusher: PushStarting {
    final class Run: PushRun {
        let order: PushOrder
        let hear: @Sendable (PushReport) -> Void
        let told = Mutex<[PushCommand]>([])
        let isStopped = Mutex(false)
        init(_ order: PushOrder, _ hear: @escaping @Sendable (PushReport) -> Void) {
            self.order = order
            self.hear = hear
        }
        func tell(_ command: PushCommand) { told.withLock { $0.append(command) } }
        func stop() { isStopped.withLock { $0 = true } }
    }

    let runs = Mutex<[Run]>([])
    /// What a worker says first.
    let first: PushReport

    init(first: PushReport = .ready) { self.first = first }

    func start(
        _ order: PushOrder, _ hear: @escaping @Sendable (PushReport) -> Void
    ) throws(ControlError) -> any PushRun {
        let run = Run(order, hear)
        runs.withLock { $0.append(run) }
        hear(first)
        return run
    }

    var all: [Run] { runs.withLock { $0 } }
    var copying: Int {
        all.count { run in
            run.told.withLock { $0.contains { if case .copy = $0 { true } else { false } } }
        }
    }
}

@Suite struct PushJobTests {
    static func manager(
        _ fixture: ControlFixture, _ pusher: ScriptedPusher, patience: Int32 = 30_000
    ) async throws -> JobManager {
        for name in ["a", "b"] {
            _ = FileManager.default.createFile(
                atPath: "\(fixture.root)/vm1-\(name).raw", contents: Data(count: 4096))
        }
        var settings = JobManagerSettings(
            runDirectory: fixture.runDirectory,
            liveEndpoint: .unix(path: fixture.runDirectory + "/live.sock", mode: 0o600))
        settings.pusher = pusher
        settings.storageMilliseconds = patience
        let manager = JobManager(
            engine: fixture.engine, state: try StateDirectory(path: fixture.stateDirectory),
            settings: settings)
        await manager.activate()
        try await manager.define(xml: fixture.domainXML())
        return manager
    }

    static func xml(_ fixture: ControlFixture) -> String {
        "<domainbackup><disks><disk name='vda'><target file='\(fixture.root)/t.a'/></disk>"
            + "<disk name='vdb'><target file='\(fixture.root)/t.b'/></disk></disks></domainbackup>"
    }

    static func exists(_ fixture: ControlFixture, _ name: String) -> Bool {
        FileManager.default.fileExists(atPath: "\(fixture.root)/\(name)")
    }

    static func ended(_ manager: JobManager, _ id: String) async throws -> JobInfo {
        #expect(try await eventually { try await manager.listJobs(domain: "vm1").isEmpty })
        return try await manager.completedJobInfo(domain: "vm1", job: id, keep: true)
    }

    @Test("a push is completed when all its workers are done, and only then has its names")
    func completed() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await Self.manager(fixture, pusher)
        let begun = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: Self.xml(fixture),
                checkpointXML: "<domaincheckpoint><name>c</name></domaincheckpoint>"))
        #expect(begun.exports.isEmpty)
        #expect(begun.targets?.map(\.path) == ["\(fixture.root)/t.a", "\(fixture.root)/t.b"])
        #expect(try await eventually { pusher.copying == 2 })
        #expect(Self.exists(fixture, "t.a.partial") && !Self.exists(fixture, "t.a"))
        pusher.all[0].hear(.progress(bytes: 1 << 20, total: 4 << 20))
        let info = try await manager.jobInfo(domain: "vm1", job: nil)
        #expect(info.bytesRead == 1 << 20, "\(info)")
        pusher.all[0].hear(.done)
        #expect(!Self.exists(fixture, "t.a"))
        pusher.all[1].hear(.done)
        let ended = try await Self.ended(manager, begun.id)
        #expect(ended.outcome == "completed" && ended.checkpointKept == true, "\(ended)")
        #expect(Self.exists(fixture, "t.a") && Self.exists(fixture, "t.b"))
        #expect(!Self.exists(fixture, "t.a.partial"))
    }

    @Test(
        "one disk that fails, says nothing, or has its name taken fails the push and marks all",
        arguments: ["fails", "silent", "taken", "broken"])
    func failed(how: String) async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await Self.manager(
            fixture, pusher, patience: how == "silent" ? 1_000 : 30_000)
        let begun = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: Self.xml(fixture),
                checkpointXML: "<domaincheckpoint><name>c</name></domaincheckpoint>"))
        #expect(try await eventually { pusher.copying == 2 })
        pusher.all[0].hear(.done)
        switch how {
        case "fails": pusher.all[1].hear(.failed("no room"))
        case "broken":
            fixture.engine.breakJob(begun.id, "scratch is full")
            pusher.all[1].hear(.failed("cannot read"))
        case "taken":
            _ = FileManager.default.createFile(atPath: "\(fixture.root)/t.b", contents: nil)
            pusher.all[1].hear(.done)
        default: break
        }
        let ended = try await Self.ended(manager, begun.id)
        let words = [
            "fails": "no room", "silent": "does not answer", "taken": "File exists",
            "broken": "scratch is full",
        ]
        #expect(ended.outcome == "failed" && ended.checkpointKept == false, "\(ended)")
        #expect(ended.errorMessage?.contains(words[how] ?? "?") == true, "\(ended)")
        #expect(!Self.exists(fixture, "t.a"))
        #expect(Self.exists(fixture, "t.a.failed") && Self.exists(fixture, "t.b.failed"))
        #expect(pusher.all.allSatisfy { $0.isStopped.withLock { $0 } })
        #expect(fixture.engine.jobCount == 0)
    }

    @Test("a push that is being ended is shown until its verdict is there")
    func ending() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await Self.manager(fixture, pusher)
        fixture.engine.change { $0.endMilliseconds = 300 }
        let begun = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: Self.xml(fixture)))
        #expect(try await eventually { pusher.copying == 2 })
        for run in pusher.all { run.hear(.done) }
        while try await manager.jobInfo(domain: "vm1", job: nil) != .none {
            try await Task.sleep(for: .milliseconds(5))
        }
        let ended = try await manager.completedJobInfo(domain: "vm1", job: nil, keep: true)
        #expect(ended.id == begun.id && ended.outcome == "completed", "\(ended)")
    }

    @Test("a target that cannot be opened refuses the begin, and nothing is left of it")
    func refused() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher(first: .failed("it is made of cheese"))
        let manager = try await Self.manager(fixture, pusher)
        do {
            _ = try await manager.begin(
                domain: "vm1", BeginRequest(backupXML: Self.xml(fixture)))
            Issue.record("nothing was refused")
        } catch {
            #expect(error.message.contains("made of cheese"), "\(error.message)")
        }
        #expect(!Self.exists(fixture, "t.a.partial") && !Self.exists(fixture, "t.b.partial"))
        #expect(fixture.engine.jobCount == 0)
        #expect(try await manager.listJobs(domain: "vm1").isEmpty)
        #expect(pusher.all.allSatisfy { $0.isStopped.withLock { $0 } })
    }

    @Test("a begin that the engine refuses takes its targets back")
    func engineRefuses() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await Self.manager(fixture, pusher)
        fixture.engine.change { $0.beginFault = .systemUnsupported(detail: "no") }
        await #expect(throws: ControlError.self) {
            try await manager.begin(
                domain: "vm1", BeginRequest(backupXML: Self.xml(fixture)))
        }
        #expect(!Self.exists(fixture, "t.a.partial") && !Self.exists(fixture, "t.a.failed"))
        #expect(pusher.all.allSatisfy { $0.isStopped.withLock { $0 } })
    }

    @Test("those that still copy share the limit")
    func shares() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await Self.manager(fixture, pusher)
        var request = BeginRequest(backupXML: Self.xml(fixture))
        request.push = BackupPlan.PushTerms(bytesPerSecond: 1000)
        _ = try await manager.begin(domain: "vm1", request)
        #expect(pusher.all.map(\.order.bytesPerSecond) == [500, 500])
        #expect(try await eventually { pusher.copying == 2 })
        pusher.all[0].hear(.done)
        #expect(pusher.all[1].told.withLock { $0.contains(.limit(1000)) })
        // Nobody calls it good but its workers.
        do {
            try await manager.end(domain: "vm1", job: nil, cause: .success)
            Issue.record("nothing was refused")
        } catch {
            #expect(error.code == "push-running")
        }
        try await manager.end(domain: "vm1", job: nil, cause: .abort)
        #expect(Self.exists(fixture, "t.b.failed"))
    }
}
