import Control
import Disk
import Foundation
import Glibc
import ServerInterface
import Synchronization
import Testing

/// What pushes that have ended leave at their targets: no good one is marked, no foreign one
/// touched, and what could not be marked is tried again.
@Suite struct PushMarkTests {
    private static let mark = "nbdpull: this is no backup"

    private static func content(_ fixture: ControlFixture, _ name: String) -> String {
        let data = FileManager.default.contents(atPath: "\(fixture.root)/\(name)") ?? Data()
        return String(decoding: data, as: UTF8.self)
    }

    private static func records(_ fixture: ControlFixture) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: fixture.stateDirectory + "/jobs")
    }

    /// A push to two files that are there already and hold their names.
    private static func beginOverFiles(
        _ fixture: ControlFixture, _ manager: JobManager
    ) async throws -> BegunJob {
        for name in ["t.a", "t.b"] {
            try String(repeating: name, count: 1000).write(
                toFile: "\(fixture.root)/\(name)", atomically: false, encoding: .utf8)
        }
        return try await manager.begin(
            domain: "vm1",
            BeginRequest(backupXML: PushJobTests.xml(fixture), reuseExternal: true))
    }

    @Test("a push whose record cannot be removed is not completed, and its targets say so")
    func recordStays() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        let begun = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: PushJobTests.xml(fixture)))
        // What a newer version wrote is never removed.
        let record = "\(fixture.stateDirectory)/jobs/\(begun.id).state"
        try "nbdpull-state 999 job 0 0\n".write(
            toFile: record, atomically: false, encoding: .utf8)
        for run in pusher.all { run.hear(.done) }
        let ended = try await PushJobTests.ended(manager, begun.id)
        #expect(ended.outcome == "failed", "\(ended)")
        #expect(ended.errorMessage?.contains("the verdict cannot be kept") == true, "\(ended)")
        for name in ["t.a", "t.b"] {
            #expect(!PushJobTests.exists(fixture, name))
            #expect(PushJobTests.exists(fixture, name + ".failed"))
        }
    }

    @Test("a failed push marks the files it was given, but none that somebody else has by now")
    func inUse() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        let begun = try await Self.beginOverFiles(fixture, manager)
        let taken = try SystemCalls.open("\(fixture.root)/t.b", flags: O_RDWR)
        try SourceLock.acquire(taken.raw, forWriting: true)
        pusher.all[0].hear(.failed("no room"))
        let ended = try await PushJobTests.ended(manager, begun.id)
        #expect(ended.outcome == "failed", "\(ended)")
        #expect(Self.content(fixture, "t.a").hasPrefix(Self.mark))
        #expect(Self.content(fixture, "t.b") == String(repeating: "t.b", count: 1000))
        let told = manager.events.recent.filter { $0.event == .stateProblem }
        #expect(told.count == 1, "\(told)")
        #expect(told.first?.message?.contains("t.b' is not marked as failed: it is in use") == true)
        // It is another's, now and later.
        #expect(try Self.records(fixture).isEmpty)
        _ = consume taken
    }

    @Test("a push that was cut off before its workers had their targets marks none")
    func notBegun() async throws {
        for isBegun in [false, true] {
            let fixture = try ControlFixture()
            let path = "\(fixture.root)/t.a"
            try "somebody's".write(toFile: path, atomically: false, encoding: .utf8)
            var target = StoredJob.Target(disk: "vda", path: path, isNew: false)
            target.identity = SystemCalls.reached(path)?.identity
            target.bootID = SystemCalls.bootID
            target.isBegun = isBegun ? true : nil
            var record = StoredJob(
                id: UUID().uuidString.lowercased(), domain: "vm1", begun: Date(), scratch: [],
                socketPath: nil)
            record.targets = [target]
            try await Self.leave(record, fixture)
            let (_, warnings) = try await fixture.restarted()
            #expect(Self.ofPushes(warnings) == [])
            #expect(Self.content(fixture, "t.a").hasPrefix(isBegun ? Self.mark : "somebody's"))
            #expect(try Self.records(fixture).isEmpty)
        }
    }

    /// Not those of disks that a busy machine opens late.
    private static func ofPushes(_ warnings: [String]) -> [String] {
        warnings.filter { !$0.contains("does not answer") }
    }

    private static func leave(_ record: StoredJob, _ fixture: ControlFixture) async throws {
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        await manager.shutdown()
        _ = consume manager
        #expect(
            try await eventually { (try? StateDirectory(path: fixture.stateDirectory)) != nil })
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(record)
        state.release()
    }

    @Test("a mark that could not be set is set by the next start that can")
    func triedAgain() async throws {
        let fixture = try ControlFixture()
        let id = try await Self.failWithoutRoom(fixture)
        #expect(try Self.records(fixture) == [id + ".state"])
        // The first one still cannot.
        for round in 0..<2 {
            if round == 1 {
                try FileManager.default.removeItem(atPath: "\(fixture.root)/t.a.failed")
            }
            let (manager, warnings) = try await fixture.restarted()
            #expect(Self.ofPushes(warnings).count == 1 - round, "\(warnings)")
            #expect(PushJobTests.exists(fixture, "t.a.partial") == (round == 0))
            #expect(try Self.records(fixture).isEmpty == (round == 1))
            // It is told once.
            #expect(try await manager.endedJobs(domain: "vm1").map(\.outcome) == ["failed"])
            #expect(!manager.events.recent.contains { $0.event == .jobEnd })
            await manager.shutdown()
        }
        #expect(PushJobTests.exists(fixture, "t.a.failed"))
        #expect(!PushJobTests.exists(fixture, "t.a"))
    }

    // All names that a failed target could have are taken.
    private static func failWithoutRoom(_ fixture: ControlFixture) async throws -> String {
        for number in 0..<100 {
            let end = number == 0 ? "" : ".\(number)"
            let path = "\(fixture.root)/t.a.failed\(end)"
            _ = FileManager.default.createFile(atPath: path, contents: nil)
        }
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        let begun = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: PushJobTests.xml(fixture),
                checkpointXML: "<domaincheckpoint><name>c</name></domaincheckpoint>"))
        pusher.all[1].hear(.failed("no room"))
        _ = try await PushJobTests.ended(manager, begun.id)
        #expect(PushJobTests.exists(fixture, "t.a.partial"))
        #expect(PushJobTests.exists(fixture, "t.b.failed"))
        let told = manager.events.recent.filter { $0.event == .stateProblem }
        #expect(told.count == 1, "\(told)")
        await manager.shutdown()
        return begun.id
    }

    @Test("a push that breaks while another server tries in vain to take over ends all the same")
    func brokenWhilePaused() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        fixture.engine.change { $0.memory = "/dev/shm/x" }
        let begun = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: PushJobTests.xml(fixture)))
        #expect(try await eventually { pusher.copying == 2 })
        try await manager.prepareToLeave()
        fixture.engine.breakJob(begun.id, "scratch is full")
        #expect(
            try await eventually {
                try await manager.jobInfo(domain: "vm1", job: begun.id).jobType == "Failed"
            })
        await manager.stay()
        let ended = try await PushJobTests.ended(manager, begun.id)
        #expect(ended.outcome == "failed", "\(ended)")
        #expect(ended.errorMessage == "scratch is full")
        #expect(PushJobTests.exists(fixture, "t.a.failed"))
        #expect(fixture.engine.jobCount == 0)
    }

    @Test("a target that cannot be looked for is not gone: the next start that can marks it")
    func outOfReach() async throws {
        let fixture = try ControlFixture()
        let directory = fixture.root + "/backups"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        try await Self.failOutOfReach(fixture, directory)
        try FileManager.default.removeItem(atPath: directory)
        try FileManager.default.moveItem(atPath: directory + ".away", toPath: directory)
        _ = try await fixture.restarted()
        #expect(PushJobTests.exists(fixture, "backups/t.failed"))
        #expect(!PushJobTests.exists(fixture, "backups/t.partial"))
        #expect(try Self.records(fixture).isEmpty)
    }

    // The directory of the target has another name when the push fails.
    private static func failOutOfReach(
        _ fixture: ControlFixture, _ directory: String
    ) async throws {
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        _ = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: "<domainbackup><disks><disk name='vda'>"
                    + "<target file='\(directory)/t'/></disk></disks></domainbackup>"))
        #expect(try await eventually { pusher.copying == 1 })
        try FileManager.default.moveItem(atPath: directory, toPath: directory + ".away")
        try FileManager.default.createSymbolicLink(
            atPath: directory, withDestinationPath: directory)
        pusher.all[0].hear(.failed("no room"))
        #expect(try await eventually { try await manager.listJobs(domain: "vm1").isEmpty })
        let told = manager.events.recent.filter { $0.event == .stateProblem }
        #expect(told.count == 1, "\(told)")
        #expect(told.first?.message?.contains("symbolic links") == true, "\(told)")
        #expect(try records(fixture).count == 1)
        await manager.shutdown()
    }

    @Test("a push whose begin failed and could not be taken back ends as soon as it can")
    func undone() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        fixture.engine.change { state in
            state.endFault = .limitReached(what: "x", limit: 1)
            // What a newer version wrote is not written over: the begin cannot be finished.
            let jobs = fixture.stateDirectory + "/jobs"
            state.onBegin = { job in
                try? "nbdpull-state 999 job 0 0\n".write(
                    toFile: "\(jobs)/\(job.id).state", atomically: false, encoding: .utf8)
            }
        }
        await #expect(throws: ControlError.self) { try await Self.beginOverFiles(fixture, manager) }
        let left = try await manager.listJobs(domain: "vm1")
        // Its end is asked for again and again.
        #expect(left.count == 1 && left.allSatisfy { ["broken", "ending"].contains($0.state) })
        #expect(pusher.copying == 0 && pusher.all.allSatisfy { $0.isStopped.withLock { $0 } })
        fixture.engine.change { $0.endFault = nil }
        let ended = try await PushJobTests.ended(manager, try #require(left.first?.id))
        #expect(ended.outcome == "failed", "\(ended)")
        #expect(fixture.engine.jobCount == 0)
        // No worker had begun: what was there before is as it was.
        for name in ["t.a", "t.b"] {
            #expect(Self.content(fixture, name) == String(repeating: name, count: 1000))
        }
    }

    @Test("a push that ends while the state directory cannot be written has failed, then and later")
    func withoutState() async throws {
        for isGood in [true, false] {
            let fixture = try ControlFixture()
            let places = ["jobs", "history", "domains", "checkpoints"].map {
                "\(fixture.stateDirectory)/\($0)"
            }
            let id = try await Self.endWithoutState(fixture, places, isGood: isGood)
            for place in places {
                try FileManager.default.removeItem(atPath: place)
                try FileManager.default.moveItem(atPath: place + ".away", toPath: place)
            }
            #expect(try Self.records(fixture) == [id + ".state"])
            let (next, _) = try await fixture.restarted()
            let known = try await PushJobTests.ended(next, id)
            #expect(known.outcome == "failed" && known.checkpointKept == false, "\(known)")
            #expect(!PushJobTests.exists(fixture, "t.a"))
            #expect(try Self.records(fixture).isEmpty)
        }
    }

    private static func endWithoutState(
        _ fixture: ControlFixture, _ places: [String], isGood: Bool
    ) async throws -> String {
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        fixture.engine.change { $0.memory = "/dev/shm/x" }
        let begun = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: PushJobTests.xml(fixture),
                checkpointXML: "<domaincheckpoint><name>c</name></domaincheckpoint>"))
        #expect(try await eventually { pusher.copying == 2 })
        for place in places {
            try FileManager.default.moveItem(atPath: place, toPath: place + ".away")
            _ = FileManager.default.createFile(atPath: place, contents: nil)
        }
        for run in pusher.all { run.hear(isGood ? .done : .failed("no room")) }
        let ended = try await PushJobTests.ended(manager, begun.id)
        #expect(ended.outcome == "failed", "\(ended)")
        for name in ["t.a", "t.b"] {
            #expect(!PushJobTests.exists(fixture, name))
            #expect(PushJobTests.exists(fixture, name + ".failed"))
        }
        await manager.shutdown()
        return begun.id
    }
}
