import Control
import Foundation
import ServerInterface
import Testing

/// The checkpoint made with a backup is a base only if the backup ended well.
@Suite struct VerdictTests {
    private func begin(
        _ manager: JobManager, checkpoint: String?, from base: String? = nil,
        fallback: Bool = false, ttl: UInt64? = nil
    ) async throws -> BegunJob {
        let inner = base.map { "<incremental>\($0)</incremental>" } ?? ""
        return try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: pullXML(inner), checkpointXML: checkpoint.map { checkpointXML($0) },
                timeToLiveSeconds: ttl, fallsBackToFull: fallback))
    }

    private func names(_ manager: JobManager) async throws -> [String] {
        try await manager.listCheckpoints(of: "vm1").map(\.name)
    }

    private func records(_ fixture: ControlFixture) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: fixture.stateDirectory + "/jobs")
    }

    @Test("P3: success and the abort of a whole job keep the checkpoint, every other end takes it")
    func causes() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        let cases: [(EndCause, breaks: Bool, keeps: Bool)] = [
            (.success, false, true), (.abort, false, true), (.failure, false, false),
            (.expired(seconds: 1), false, false), (.shutdown, false, false),
            (.success, true, false), (.abort, true, false), (.expired(seconds: 1), true, false),
        ]
        var kept = ["c1"]
        for (index, (cause, breaks, keeps)) in cases.enumerated() {
            let name = "x\(index)"
            let job = try await begin(manager, checkpoint: name)
            if breaks { fixture.engine.breakJob(job.id, "scratch is full") }
            let info = try await manager.end(domain: "vm1", job: job.id, cause: cause)
            if keeps { kept.append(name) }
            #expect(info.success == keeps, "\(cause) \(breaks)")
            #expect(info.checkpoint == name && info.checkpointKept == keeps)
            #expect(fixture.chains["vda"] == kept, "\(cause) \(breaks)")
            #expect(fixture.chains["vdb"] == kept)
            #expect(Set(try await names(manager)) == Set(kept))
        }
        #expect(fixture.checkpointFiles == kept.map { $0 + ".state" }.sorted())
        #expect(try records(fixture).isEmpty)
        await expectError("checkpoint-not-found") {
            try await begin(manager, checkpoint: nil, from: "x5")
        }
    }

    @Test("P3: an expired job takes its checkpoint back by itself")
    func timeToLive() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        fixture.engine.change { $0.endFault = .limitReached(what: "x", limit: 1) }
        _ = try await begin(manager, checkpoint: "e", ttl: 1)
        try await Task.sleep(for: .milliseconds(1500))
        #expect(try await manager.listJobs(domain: nil).count == 1)
        fixture.engine.change { $0.endFault = nil }
        // An end that was refused once is asked for again.
        for _ in 0..<80 where try await !manager.listJobs(domain: nil).isEmpty {
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(try await manager.listJobs(domain: nil).isEmpty)
        #expect(fixture.chains["vda"] == ["c1"])
    }

    @Test("P3: what comes after a checkpoint that is taken back stays, with its parent")
    func children() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        let job = try await begin(manager, checkpoint: "f")
        try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("later"))
        #expect(try await manager.checkpoint("later", of: "vm1").parent == "f")
        try await manager.end(domain: "vm1", job: job.id, cause: .failure)
        #expect(fixture.chains["vda"] == ["c1", "later"])
        #expect(try await manager.checkpoint("later", of: "vm1").parent == "c1")
    }

    @Test("P3: nothing starts from a checkpoint whose backup has not ended")
    func running() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        let first = try await begin(manager, checkpoint: "c2")
        #expect(
            try await manager.checkpoint("c2", of: "vm1").disks.map(\.usable)
                == [false, false, false])
        let refused = await #expect(throws: ControlError.self) {
            try await begin(manager, checkpoint: "c3", from: "c2")
        }
        #expect(refused?.libvirtCode == 109)
        #expect(refused?.message.contains("'\(first.id)', which made it, has not ended") == true)
        #expect(try await names(manager) == ["c1", "c2"])
        let full = try await begin(manager, checkpoint: nil, from: "c2", fallback: true)
        #expect(full.exports.map(\.bitmap) == [nil, nil])
        #expect(full.exports[0].fallbackReason?.contains("has not ended") == true)
        try await manager.end(domain: "vm1", job: full.id, cause: .abort)
        // Older ones are bases all the while.
        let older = try await begin(manager, checkpoint: nil, from: "c1")
        try await manager.end(domain: "vm1", job: older.id, cause: .success)
        try await manager.end(domain: "vm1", job: first.id, cause: .success)
        #expect(try await manager.checkpoint("c2", of: "vm1").disks[0].usable)
        #expect(try await begin(manager, checkpoint: nil, from: "c2").exports[0].bitmap != nil)
    }

    @Test(
        "P3: a kill -9 and a stop take the checkpoint of a running job back",
        arguments: [true, false])
    func cutOff(isStopped: Bool) async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            _ = try await begin(manager, checkpoint: "f")
            if isStopped { await manager.shutdown() }
            _ = consume manager
        }
        #expect(fixture.chains["vda"] == (isStopped ? ["c1"] : ["c1", "f"]))
        for round in 1...2 {
            let (manager, warnings) = try await fixture.restarted()
            #expect(warnings == [])
            #expect(fixture.chains["vda"] == ["c1"])
            #expect(try await names(manager) == ["c1"])
            #expect(fixture.checkpointFiles == ["c1.state"])
            #expect(try records(fixture).isEmpty)
            let past = try await manager.endedJobs(domain: "vm1")
            #expect(past.map(\.outcome) == [isStopped ? "cancelled" : "failed"])
            #expect(past[0].checkpointKept == false)
            let ends = manager.events.recent.count { $0.event == .jobEnd }
            #expect(ends == (round == 1 && !isStopped ? 1 : 0))
            await manager.shutdown()
        }
    }

    @Test("P3: a taking-back that fails leaves no base, and is done at the next start")
    func refusedTakingBack() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            let job = try await begin(manager, checkpoint: "f")
            fixture.engine.change { $0.deleteFault = .limitReached(what: "x", limit: 1) }
            let info = try await manager.end(domain: "vm1", job: job.id, cause: .failure)
            #expect(info.errorMessage?.contains("'f' is no longer usable") == true)
            #expect(manager.events.recent.contains { $0.event == .stateProblem })
            #expect(fixture.chains["vda"] == ["c1", "f"])
            await expectError("checkpoint-not-found") {
                try await begin(manager, checkpoint: nil, from: "f")
            }
            // Its bitmaps are still there: describing it anew must not make it a base.
            await expectError("checkpoint-taken-back") {
                try await manager.createCheckpoint(
                    domain: "vm1", xml: checkpointXML("f", "<creationTime>5</creationTime>"),
                    redefine: true)
            }
            await #expect(throws: ControlError.self) {
                try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("f"))
            }
            #expect(try records(fixture).count == 1)
            await manager.shutdown()
        }
        fixture.engine.change { $0.isShutDown = false }
        do {
            let (manager, _) = try await fixture.restarted()
            #expect(try await names(manager) == ["c1"])
            #expect(!manager.events.recent.contains { $0.event == .jobEnd })
            await expectError("checkpoint-taken-back") {
                try await manager.createCheckpoint(
                    domain: "vm1", xml: checkpointXML("f", "<creationTime>5</creationTime>"),
                    redefine: true)
            }
            fixture.engine.change { $0.deleteFault = nil }
            // Now it can go, and the name is free.
            try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("f"))
            #expect(fixture.chains["vda"] == ["c1", "f"])
            #expect(try records(fixture).isEmpty)
            await manager.shutdown()
        }
        let (manager, _) = try await fixture.restarted()
        #expect(try await names(manager) == ["c1", "f"])
        #expect(try await manager.endedJobs(domain: "vm1").count == 1)
    }

    @Test("P3: a checkpoint forgotten and described anew during its job is taken back all the same")
    func redefinedMeanwhile() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        let job = try await begin(manager, checkpoint: "f")
        let xml = try await manager.checkpointXML("f", of: "vm1").xml
        try await manager.deleteCheckpoint("f", of: "vm1", metadataOnly: true)
        try await manager.createCheckpoint(domain: "vm1", xml: xml, redefine: true)
        try await manager.end(domain: "vm1", job: job.id, cause: .failure)
        #expect(fixture.chains["vda"] == ["c1"])
        let other = try await begin(manager, checkpoint: "g")
        try await manager.deleteCheckpoint("g", of: "vm1", metadataOnly: true)
        try await manager.end(domain: "vm1", job: other.id, cause: .failure)
        #expect(fixture.chains["vda"] == ["c1"])
        #expect(fixture.checkpointFiles == ["c1.state"])
    }

    @Test("a failed verdict leaves another checkpoint of that name alone")
    func anotherOfThatName() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        _ = try await begin(manager, checkpoint: "f")
        try await manager.deleteCheckpoint("f", of: "vm1")
        try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("f"))
        try await manager.end(domain: "vm1", job: nil, cause: .failure)
        #expect(try await manager.checkpoint("f", of: "vm1").name == "f")
        #expect(fixture.chains["vda"] == ["f"])
    }

    @Test("P3: a verdict that cannot be kept is none")
    func unkeptVerdict() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            let job = try await begin(manager, checkpoint: "f")
            let path = fixture.stateDirectory + "/jobs/\(job.id).state"
            let record = try Data(contentsOf: URL(fileURLWithPath: path))
            // A directory in its place cannot be unlinked, as a file of a read-only system cannot.
            try FileManager.default.removeItem(atPath: path)
            try FileManager.default.createDirectory(
                atPath: path + "/x", withIntermediateDirectories: true)
            let info = try await manager.end(domain: "vm1", job: nil, cause: .success)
            #expect(info.success == false && info.outcome == "failed")
            #expect(info.errorMessage?.contains("the verdict cannot be kept") == true)
            #expect(fixture.chains["vda"] == ["c1"])
            try FileManager.default.removeItem(atPath: path)
            try record.write(to: URL(fileURLWithPath: path))
            await manager.shutdown()
        }
        let (restarted, _) = try await fixture.restarted()
        #expect(try await names(restarted) == ["c1"])
        #expect(try await restarted.endedJobs(domain: "vm1").map(\.outcome) == ["failed"])
    }

    @Test("P3: a damaged record of a job still says that it did not end well")
    func damagedRecord() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            let job = try await begin(manager, checkpoint: "f")
            try Data("torn".utf8).write(
                to: URL(fileURLWithPath: fixture.stateDirectory + "/jobs/\(job.id).state"))
            _ = consume manager
        }
        do {
            let (manager, warnings) = try await fixture.restarted()
            #expect(warnings.count == 1)
            #expect(try await names(manager) == ["c1"])
            #expect(fixture.chains["vda"] == ["c1"])
            await manager.shutdown()
        }
        let (again, none) = try await fixture.restarted()
        #expect(none == [])
        #expect(try await names(again) == ["c1"])
    }

    @Test("P6: thousands of damaged records are told of in a few lines, and met only once")
    func manyDamagedRecords() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            _ = consume manager
        }
        let jobs = fixture.stateDirectory + "/jobs"
        for number in 0..<5000 {
            try Data("torn".utf8).write(
                to: URL(fileURLWithPath: "\(jobs)/x\(number).state"))
        }
        do {
            let (manager, warnings) = try await fixture.restarted()
            #expect(warnings.count == JobManager.damagedLinesMax + 1)
            #expect(warnings.last?.contains("4984 more") == true, "\(warnings.last ?? "")")
            #expect(try await names(manager) == ["c1"])
            #expect(await manager.problems == [])
            await manager.shutdown()
        }
        let (again, none) = try await fixture.restarted()
        #expect(none == [])
        #expect(try await names(again) == ["c1"])
    }

    @Test("P3: a job that breaks between the last look and its end did not end well")
    func brokenAtTheEnd() async throws {
        for cause in [EndCause.success, .abort] {
            let fixture = try ControlFixture()
            let manager = try await fixture.managerWithCheckpoints("c1")
            let job = try await begin(manager, checkpoint: "f")
            // No event says so: only the report of the end does.
            fixture.engine.change { $0.broken[job.id] = "scratch is full" }
            let info = try await manager.end(domain: "vm1", job: nil, cause: cause)
            #expect(info.success == false && info.outcome == "failed")
            #expect(info.errorMessage?.contains("scratch is full") == true)
            #expect(fixture.chains["vda"] == ["c1"])
        }
    }

    @Test("a job that the engine has given up did not end well")
    func lostJob() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        _ = try await begin(manager, checkpoint: "f")
        fixture.engine.change { $0.jobs = [:] }
        let info = try await manager.end(domain: "vm1", job: nil, cause: .success)
        #expect(info.success == false)
        #expect(fixture.chains["vda"] == ["c1"])
    }

    @Test("P3: a disk that another server has keeps no failed backup of its domain from being over")
    func besideADiskThatIsAway() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints("c1")
        _ = try await manager.exportState(
            of: "vm1", disks: ["vdb"], to: fixture.root + "/vdb.moved")
        let daily = checkpointXML(
            "daily", "<disks><disk name='vda'/><disk name='vdb' checkpoint='no'/></disks>")
        let request = BeginRequest(
            backupXML: pullXML("<disks><disk name='vda'/><disk name='vdb' backup='no'/></disks>"),
            checkpointXML: daily)
        for _ in 1...2 {
            let job = try await manager.begin(domain: "vm1", request)
            fixture.engine.breakJob(job.id, "scratch is gone")
            let info = try await manager.end(domain: "vm1", job: job.id, cause: .failure)
            #expect(info.checkpointKept == false)
            #expect(fixture.chains["vda"] == ["c1"])
            #expect(try records(fixture).isEmpty)
        }
        #expect(!manager.events.recent.contains { $0.event == .stateProblem })
        // Nor is a name taken by bitmaps that were kept.
        try await manager.createCheckpoint(domain: "vm1", xml: daily)
        try await manager.deleteCheckpoint("daily", of: "vm1", metadataOnly: true)
        try await manager.createCheckpoint(domain: "vm1", xml: daily)
        #expect(fixture.chains["vda"] == ["c1", "daily"])
    }
}
