import Control
import Foundation
import ServerInterface
import Testing

@Suite struct JobManagerTests {
    @Test func aJobBeginsIsListedAndEnds() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        #expect(fixture.engine.attachedCount == 2)
        let begun = try await manager.begin(domain: "vm1", BeginRequest())
        #expect(begun.exports.map(\.name) == ["vda", "vdb"])
        #expect(
            begun.exports[0].uri
                == "nbd+unix:///vda?socket=\(fixture.runDirectory)/backup-\(begun.id).sock")
        let info = try await manager.jobInfo(domain: "vm1", job: nil)
        #expect(info.jobType == "Unbounded")
        #expect(info.tempUsed == 131_072)
        #expect(info.tempTotal == 2 << 20)
        #expect(info.bytesRead == 8192)
        #expect(info.bytesToRead == 32_768)
        #expect(try await manager.listJobs(domain: "vm1").map(\.id) == [begun.id])
        #expect(
            try await manager.backupXML(domain: "vm1", job: nil).xml.contains("exportname='vda'"))
        let ended = try await manager.end(domain: "vm1", job: nil, cause: .success)
        #expect(ended.jobType == "Completed")
        #expect(ended.success == true)
        #expect(fixture.engine.jobCount == 0)
        #expect(try await manager.jobInfo(domain: "vm1", job: nil) == .none)
        let kept = try await manager.completedJobInfo(domain: "vm1", job: nil, keep: true)
        #expect(kept.id == begun.id)
        let read = try await manager.completedJobInfo(domain: "vm1", job: begun.id, keep: false)
        #expect(read.jobType == "Completed")
        #expect(try await manager.completedJobInfo(domain: "vm1", job: nil, keep: false) == .none)
    }

    @Test func severalJobsNeedTheirIDs() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let first = try await manager.begin(domain: "vm1", BeginRequest())
        let second = try await manager.begin(domain: "vm1", BeginRequest())
        #expect(first.id != second.id)
        await expectError("job-ambiguous") {
            try await manager.end(domain: "vm1", job: nil, cause: .abort)
        }
        await expectError("domain-busy") { try await manager.undefine("vm1") }
        try await manager.end(domain: "vm1", job: first.id, cause: .abort)
        let last = try await manager.end(domain: "vm1", job: nil, cause: .failure)
        #expect(last.id == second.id)
        #expect(last.jobType == "Failed")
        await expectError("no-active-job") {
            try await manager.end(domain: "vm1", job: nil, cause: .abort)
        }
        await expectError("job-not-found") {
            try await manager.end(domain: "vm1", job: first.id, cause: .abort)
        }
        await expectError("no-job") { _ = try await manager.backupXML(domain: "vm1", job: nil) }
        try await manager.undefine("vm1")
        #expect(fixture.engine.attachedCount == 0)
    }

    @Test func aBrokenJobStaysListedWithItsReasonUntilEnded() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let job = try await manager.begin(domain: "vm1", BeginRequest())
        fixture.engine.breakJob(job.id, "scratch is full")
        #expect(
            try await eventually {
                try await manager.listJobs(domain: nil).first?.state == "broken"
            })
        #expect(
            try await eventually { manager.events.recent.contains { $0.event == .jobBroken } })
        #expect(try await manager.listJobs(domain: nil).first?.errorMessage == "scratch is full")
        let info = try await manager.jobInfo(domain: "vm1", job: nil)
        #expect(info.jobType == "Failed")
        #expect(info.errorMessage == "scratch is full")
        let ended = try await manager.end(domain: "vm1", job: nil, cause: .success)
        #expect(ended.jobType == "Failed")
        #expect(ended.errorMessage == "scratch is full")
        #expect(manager.events.recent.count { $0.event == .jobBroken } == 1)
    }

    @Test func aJobBrokenWhileItBeginsIsBroken() async throws {
        let fixture = try ControlFixture()
        let engine = fixture.engine
        engine.change {
            $0.onBegin = { [weak engine] in engine?.breakJob($0.id, "at once") }
        }
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        _ = try await manager.begin(domain: "vm1", BeginRequest())
        #expect(try await manager.listJobs(domain: "vm1").first?.state == "broken")
    }

    @Test func aJobEndsAsFailedWhenItsTimeIsOver() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        _ = try await manager.begin(domain: "vm1", BeginRequest(timeToLiveSeconds: 1))
        #expect(
            try await eventually { try await manager.listJobs(domain: "vm1").isEmpty })
        let info = try await manager.completedJobInfo(domain: "vm1", job: nil, keep: false)
        #expect(info.jobType == "Failed")
        #expect(info.errorMessage == "the job's time to live of 1 s is over")
        await expectError("invalid-argument") {
            _ = try await manager.begin(domain: "vm1", BeginRequest(timeToLiveSeconds: 0))
        }
    }

    @Test func aRefusedBeginLeavesNothing() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        fixture.engine.change {
            $0.beginFault = .cannotListen(endpoint: "x", errorText: "Address already in use")
        }
        for request in [
            BeginRequest(), BeginRequest(backupXML: "<domainbackup"),
            BeginRequest(checkpointXML: "<domaincheckpoint/>"),
            BeginRequest(
                backupXML: "<domainbackup mode='pull'>"
                    + "<server transport='tcp' name='192.0.2.1' port='1'/></domainbackup>"),
        ] {
            await #expect(throws: ControlError.self) {
                try await manager.begin(domain: "vm1", request)
            }
        }
        #expect(try await manager.listJobs(domain: nil).isEmpty)
        let records = try FileManager.default.contentsOfDirectory(
            atPath: fixture.stateDirectory + "/jobs")
        #expect(records.isEmpty)
        #expect(!manager.events.recent.contains { $0.event == .jobBegin })
    }

    @Test func aRefusedDefineLeavesNothingAttached() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        let bad = fixture.root + "/vm1-b.raw"
        fixture.engine.change { $0.unusablePaths = [bad] }
        await expectError("source-unusable") {
            try await manager.define(xml: fixture.domainXML())
        }
        #expect(fixture.engine.attachedCount == 0)
        #expect(await manager.listDomains().isEmpty)
        fixture.engine.change { $0.unusablePaths = [] }
        try await manager.define(xml: fixture.domainXML())
        let uuid = "<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>"
        await expectError("domain-exists") {
            try await manager.define(
                xml: fixture.domainXML().replacing("<name>", with: uuid + "<name>"))
        }
        #expect(fixture.engine.attachedCount == 2)
    }

    @Test("a job that cannot outlive the server is served; its answer and the log say why")
    func notLasting() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        let lasting = try await manager.begin(domain: "vm1", BeginRequest())
        #expect(lasting.warning == nil)
        #expect(!manager.events.recent.contains { $0.event == .jobNotLasting })
        _ = try await manager.end(domain: "vm1", job: lasting.id, cause: .success)
        fixture.engine.change { $0.notLasting = "'/dev/shm/x' is full" }
        let id = UUID().uuidString.lowercased()
        let job = try await manager.begin(domain: "vm1", BeginRequest(id: id))
        #expect(job.warning?.contains("'/dev/shm/x' is full") == true)
        #expect(!job.exports.isEmpty)
        let told = manager.events.recent.filter { $0.event == .jobNotLasting }
        #expect(told.map(\.id) == [id] && told.first?.severity == .warning)
        #expect(told.first?.message == job.warning)
        // Whoever asks again is told as well.
        let again = try await manager.begin(domain: "vm1", BeginRequest(id: id))
        #expect(again.warning == job.warning)
    }

    @Test func anEngineThatCannotEndAJobKeepsIt() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let job = try await manager.begin(domain: "vm1", BeginRequest())
        fixture.engine.change { $0.endFault = .limitReached(what: "x", limit: 1) }
        await #expect(throws: ControlError.self) {
            try await manager.end(domain: "vm1", job: job.id, cause: .success)
        }
        #expect(try await manager.listJobs(domain: nil).first?.state == "running")
    }

    @Test func shutdownEndsEveryJobAndRefusesNewOnes() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        _ = try await manager.begin(domain: "vm1", BeginRequest())
        _ = try await manager.begin(domain: "vm1", BeginRequest())
        await manager.shutdown()
        #expect(fixture.engine.jobCount == 0)
        #expect(fixture.engine.look { $0.isShutDown })
        await expectError("server-stopping") {
            _ = try await manager.begin(domain: "vm1", BeginRequest())
        }
    }
}

/// Expects a `ControlError` of this code.
func expectError(_ code: String, _ body: () async throws -> some Any) async {
    do {
        _ = try await body()
        Issue.record("no error, expected \(code)")
    } catch let error as ControlError {
        #expect(error.code == code)
    } catch {
        Issue.record("\(error)")
    }
}
