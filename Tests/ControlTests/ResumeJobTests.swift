import Control
import Foundation
import ServerInterface
import Testing

/// What the manager makes of the jobs that the last server has left.
@Suite struct ResumeJobTests {
    private static let id = "0a6e7426-57e6-4de4-a80c-853fa225681b"

    /// A state directory with a domain and the record of a job of it, changed as asked.
    private static func leave(
        _ fixture: ControlFixture, _ change: (inout StoredJob, inout StoredResume) -> Void
    ) throws {
        let definition = try DomainDefinition.parse(
            fixture.domainXML(), hasStableUUID: true)
        let request = try BackupRequest.parse(
            "<domainbackup mode='pull'><server transport='unix' socket='/tmp/x.sock'/>"
                + "</domainbackup>")
        let plan = try BackupPlan.make(
            request, domain: definition, jobID: id, reuseExternal: false, scratchSuffix: "1",
            firstIndex: 3)
        var record = StoredJob(
            id: id, domain: "vm1", begun: Date(timeIntervalSinceNow: -100), scratch: [],
            socketPath: "/tmp/x.sock")
        var resume = StoredResume(
            bootID: SystemCalls.bootID, uuid: definition.uuid, plan: plan,
            endpoint: .unix(path: "/tmp/x.sock", mode: 0o600), security: .plaintext,
            clientRelease: true, copyTimeoutMilliseconds: 7, holdNanoseconds: 9,
            begunNanoseconds: SystemCalls.nanosecondsSinceBoot - 100_000_000_000,
            timeToLiveSeconds: 1000, diskSizes: ["vda": 77], memory: "/dev/shm/x")
        change(&record, &resume)
        record.resume = Lenient(resume)
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(
            StoredDomain(name: "vm1", uuid: definition.uuid, xml: definition.xml))
        try state.save(record)
        state.release()
    }

    /// Jobs go on beside the start, which waits for none: as long as it takes, on a busy machine.
    private static func settle(_ isSettled: () async throws -> Bool) async throws {
        let end = ContinuousClock.now + .seconds(60)
        while try await !isSettled(), ContinuousClock.now < end {
            try await Task.sleep(for: .milliseconds(20))
        }
    }

    @Test("a job goes on as it was begun, with the age that it has")
    func goesOn() async throws {
        let fixture = try ControlFixture()
        try Self.leave(fixture) { _, _ in }
        let (manager, engine) = (try await fixture.manager(stored: true), fixture.engine)
        _ = await manager.restore()
        let asked = engine.look { $0.expected }
        #expect(asked.map(\.liveExports) == [["vm1/vda", "vm1/vdb"]])
        #expect(asked.first?.configuration.copyTimeoutMilliseconds == 7)
        #expect(asked.first?.configuration.clientRelease == true)
        try await Self.settle {
            try await manager.jobInfo(domain: "vm1", job: Self.id).state != "starting"
        }
        let info = try await manager.jobInfo(domain: "vm1", job: Self.id)
        #expect(info.state == "running")
        let elapsed = Double(info.timeElapsed ?? 0) / 1000
        #expect(elapsed >= 100)
        let view = try await manager.listJobs(domain: "vm1").first
        let left = view?.expires?.timeIntervalSinceNow ?? 0
        // Of the 1,000 s that it was begun with, however long this took.
        #expect((995...1000.1).contains(elapsed + left), "\(elapsed) s of age, \(left) s are left")
        try await manager.end(domain: "vm1", job: Self.id, cause: .success)
        #expect(try StateDirectory.jobFiles(fixture).isEmpty)
    }

    @Test(
        "P1: a job whose checkpoint was deleted while it ran goes on", arguments: [false, true])
    func deletedCheckpoint(metadataOnly: Bool) async throws {
        let fixture = try ControlFixture()
        try Self.leave(fixture) { record, _ in record.checkpoint = "c1" }
        let uuid = try DomainDefinition.parse(fixture.domainXML(), hasStableUUID: true).uuid
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(
            CheckpointMetadata(
                name: "c1", disks: [.init(target: "vda", bitmap: "c1")], jobID: Self.id), of: uuid)
        state.release()
        func firstServer() async throws {
            let manager = try await fixture.manager(stored: true)
            _ = await manager.restore()
            try await Self.settle {
                try await manager.jobInfo(domain: "vm1", job: Self.id).state == "running"
            }
            try await manager.deleteCheckpoint("c1", of: "vm1", metadataOnly: metadataOnly)
        }
        try await firstServer()
        let (manager, _) = try await fixture.restarted()
        try await Self.settle {
            try await manager.listJobs(domain: "vm1").first?.state != "starting"
        }
        #expect(try await manager.endedJobs(domain: "vm1").map(\.errorMessage) == [])
        let info = try await manager.end(domain: "vm1", job: Self.id, cause: .success)
        #expect(info.success == true)
        #expect(try StateDirectory.jobFiles(fixture).isEmpty)
    }

    @Test("a job of another boot, version or begin has failed, and says why")
    func refused() async throws {
        let cases: [(String, (inout StoredJob, inout StoredResume) -> Void)] = [
            ("the machine was restarted", { $1.bootID = "another" }),
            ("another version began the job", { $1.version = 99 }),
            ("was being begun", { job, _ in job.checkpoint = "c1" }),
            ("it broke", { job, _ in job.brokenReason = "it broke" }),
            ("TLS", { $1.security = .required }),
        ]
        for (reason, change) in cases {
            let fixture = try ControlFixture()
            try Self.leave(fixture, change)
            let manager = try await fixture.manager(stored: true)
            _ = await manager.restore()
            let ended = try await manager.endedJobs(domain: "vm1")
            #expect(ended.count == 1, "\(reason)")
            #expect(ended.first?.outcome == "failed")
            #expect(ended.first?.errorMessage?.contains(reason) == true, "\(ended)")
            #expect(try await manager.jobInfo(domain: "vm1", job: nil) == .none)
            #expect(try StateDirectory.jobFiles(fixture).isEmpty, "\(reason)")
        }
    }

    @Test("a job that was told to have failed does not go on, though its record says nothing of it")
    func toldAlready() async throws {
        let fixture = try ControlFixture()
        try Self.leave(fixture) { _, _ in }
        let state = try StateDirectory(path: fixture.stateDirectory)
        var told = JobInfo(jobType: "Failed")
        (told.id, told.domain, told.success) = (Self.id, "vm1", false)
        (told.outcome, told.errorMessage) = ("failed", "the verdict cannot be kept")
        try state.save(StoredHistory(domain: "vm1", jobs: [told], isLastUnread: true))
        state.release()
        let manager = try await fixture.manager(stored: true)
        _ = await manager.restore()
        #expect(fixture.engine.look { $0.expected }.isEmpty)
        #expect(try await manager.listJobs(domain: "vm1").isEmpty)
        let ended = try await manager.endedJobs(domain: "vm1")
        #expect(ended.map(\.errorMessage) == ["the verdict cannot be kept"])
        #expect(try StateDirectory.jobFiles(fixture).isEmpty)
    }

    @Test("what the engine refuses has failed with its reason, and the engine has forgotten it")
    func engineRefuses() async throws {
        let fixture = try ControlFixture()
        try Self.leave(fixture) { _, _ in }
        let (manager, engine) = (try await fixture.manager(stored: true), fixture.engine)
        engine.change { $0.resumeFault = .jobNotResumed(detail: "scratch is gone") }
        _ = await manager.restore()
        try await Self.settle { try await !manager.endedJobs(domain: "vm1").isEmpty }
        let ended = try await manager.endedJobs(domain: "vm1")
        #expect(ended.first?.errorMessage?.contains("scratch is gone") == true, "\(ended)")
        #expect(engine.look { $0.expected }.isEmpty)
    }

    @Test("P1: a server that cannot begin leaves jobs that wait for their disks to the next one")
    func abandoned() async throws {
        let fixture = try ControlFixture()
        try Self.leave(fixture) { _, _ in }
        let path = fixture.root + "/vm1-a.raw"
        fixture.engine.change { $0.unusablePaths = [path] }
        func firstServer() async throws {
            let manager = try await fixture.manager(stored: true)
            _ = await manager.restore()
            #expect(try await manager.listJobs(domain: "vm1").first?.state == "starting")
            let waiting = await manager.awaitedSockets
            #expect(waiting == [SocketPlace(.nbd, "/tmp/x.sock")])
            await manager.abandon()
            await manager.hasLeft()
            // Longer than it takes to look for the disk again.
            try await Task.sleep(for: .milliseconds(400))
        }
        try await firstServer()
        #expect(!fixture.engine.look { $0.expected }.isEmpty, "it was given up")
        fixture.engine.change { $0.unusablePaths = [] }
        let (manager, _) = try await fixture.restarted()
        try await Self.settle {
            try await manager.listJobs(domain: "vm1").first?.state == "running"
        }
        #expect(try await manager.endedJobs(domain: "vm1").map(\.errorMessage) == [])
        #expect(await manager.awaitedSockets.isEmpty)
        _ = try await manager.end(domain: "vm1", job: Self.id, cause: .success)
    }
}

extension StateDirectory {
    fileprivate static func jobFiles(_ fixture: ControlFixture) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: fixture.stateDirectory + "/jobs")
    }
}
