import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// What is known of jobs that have ended, and of files that cannot be read.
@Suite struct HistoryTests {
    private func run(_ manager: JobManager, _ cause: EndCause) async throws -> String {
        let job = try await manager.begin(domain: "vm1", BeginRequest())
        try await manager.end(domain: "vm1", job: job.id, cause: cause)
        return job.id
    }

    @Test("ended jobs stay readable, over restarts too, and are bounded")
    func history() async throws {
        let fixture = try ControlFixture()
        var ids: [String] = []
        do {
            let manager = try await fixture.managerWithCheckpoints()
            #expect(try await manager.endedJobs(domain: "vm1").isEmpty)
            for index in 0..<(JobManager.historyMax + 3) {
                ids.append(try await run(manager, [.success, .failure, .abort][index % 3]))
            }
            ids.removeFirst(3)
            let past = try await manager.endedJobs(domain: "vm1")
            #expect(past.map(\.id) == ids)
            #expect(past.suffix(3).map(\.outcome) == ["aborted", "completed", "failed"])
            #expect(past.allSatisfy { $0.ended != nil && $0.domain == "vm1" })
            // domjobinfo shows the last one once, as virsh does; the history loses nothing by it.
            let shown = try await manager.completedJobInfo(domain: "vm1", job: nil, keep: false)
            #expect(shown.id == ids.last)
            #expect(
                try await manager.completedJobInfo(domain: "vm1", job: nil, keep: true) == .none)
            let byID = try await manager.completedJobInfo(domain: "vm1", job: ids[0], keep: false)
            #expect(byID.id == ids[0])
            #expect(try await manager.endedJobs(domain: nil).map(\.id) == ids)
            await manager.shutdown()
        }
        let (manager, _) = try await fixture.restarted()
        #expect(try await manager.endedJobs(domain: "vm1").map(\.id) == ids)
        #expect(!manager.events.recent.contains { $0.event == .jobEnd })
        #expect(try await manager.completedJobInfo(domain: "vm1", job: nil, keep: true) == .none)
        await expectError("domain-not-found") { try await manager.endedJobs(domain: "no") }
        try await manager.undefine("vm1")
        #expect(try await manager.endedJobs(domain: nil).isEmpty)
    }

    @Test("each outcome is counted under its own name")
    func metrics() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        for cause in [EndCause.success, .abort, .abort, .failure, .expired(seconds: 1)] {
            _ = try await run(manager, cause)
        }
        let text = MetricsText.render(await manager.snapshot())
        for (outcome, count) in [
            ("completed", 1), ("aborted", 2), ("failed", 2), ("cancelled", 0),
        ] {
            #expect(
                text.contains("nbdpull_jobs_ended_total{outcome=\"\(outcome)\"} \(count)\n"))
        }
    }

    @Test("files of a newer version are said aloud, and neither read, replaced nor removed")
    func newerVersion() async throws {
        let fixture = try ControlFixture()
        var domainFile = ""
        var checkpointFile = ""
        var jobFile = ""
        do {
            let manager = try await fixture.managerWithCheckpoints("c1")
            try await manager.define(xml: fixture.domainXML("vm2"))
            let job = try await manager.begin(
                domain: "vm1", BeginRequest(checkpointXML: checkpointXML("f")))
            jobFile = fixture.stateDirectory + "/jobs/\(job.id).state"
            let uuid = try #require(await manager.listDomains().first?.uuid)
            domainFile = fixture.stateDirectory + "/domains/\(uuid).state"
            checkpointFile = fixture.stateDirectory + "/checkpoints/\(uuid)/c1.state"
            #expect(await manager.problems == [])
            _ = consume manager
        }
        func makeNewer(_ path: String) throws {
            let text = try String(contentsOfFile: path, encoding: .utf8)
            try text.replacing("nbdpull-state 1 ", with: "nbdpull-state 2 ", maxReplacements: 1)
                .write(toFile: path, atomically: false, encoding: .utf8)
        }
        try makeNewer(jobFile)
        try makeNewer(checkpointFile)
        do {
            let (manager, warnings) = try await fixture.restarted()
            #expect(warnings.count == 2)
            #expect(await manager.problems.allSatisfy { $0.contains("newer version") })
            #expect(await manager.problems.count == 2)
            // Nobody here knows what became of the job: its checkpoint is no base, and stays.
            let refused = await #expect(throws: ControlError.self) {
                try await manager.begin(
                    domain: "vm1", BeginRequest(backupXML: pullXML("<incremental>f</incremental>")))
            }
            #expect(refused?.libvirtCode == 109)
            await expectError("state-not-written") {
                try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c1"))
            }
            await expectError("state-not-written") {
                try await manager.undefine("vm1", removingCheckpoints: true)
            }
            await manager.shutdown()
        }
        try makeNewer(domainFile)
        let (last, _) = try await fixture.restarted()
        #expect(await last.listDomains().map(\.domain) == ["vm2"])
        #expect(await last.problems.contains { $0.contains(domainFile) })
        await expectError("state-not-written") {
            try await last.define(xml: fixture.domainXML("vm1"))
        }
        for path in [domainFile, checkpointFile, jobFile] {
            #expect(
                try String(contentsOfFile: path, encoding: .utf8).hasPrefix("nbdpull-state 2 "))
        }
        #expect(fixture.chains["vda"] == ["c1", "f"])
        // Moved away, it is no problem any more.
        try FileManager.default.moveItem(atPath: domainFile, toPath: fixture.root + "/away")
        #expect(await last.problems.allSatisfy { !$0.contains(domainFile) })
    }

    @Test("every event has a severity, and jobs and disks are worth a line")
    func severities() {
        for kind in ControlEvent.Kind.allCases {
            let isConnection = kind == .clientConnect || kind == .clientDisconnect
            #expect((ControlEvent(kind).severity == .debug) == isConnection, "\(kind)")
        }
        #expect(ControlEvent(.jobEnd, message: "Completed").severity == .info)
        #expect(ControlEvent(.jobEnd, message: "Failed: x").severity == .warning)
        #expect(ControlEvent(.jobBroken).severity == .error)
        var lines: [String] = []
        let seen = EventSink()
        let log = EventLog { seen.add($0.text) }
        log.append(ControlEvent(.diskFailed, domain: "a\nb", disk: "vda", message: "gone"))
        lines = seen.lines
        #expect(lines == ["disk-failed domain=a b disk=vda : gone"])
    }

    @Test("an unknown word finds its neighbour")
    func spelling() {
        let known = ["tls-certs", "tls-psk", "state-dir", "live-tcp"]
        #expect(Spelling.nearest("tls_cert", in: known) == "tls-certs")
        #expect(Spelling.nearest("TLS-CERTS", in: known) == "tls-certs")
        #expect(Spelling.nearest("statedir", in: known) == "state-dir")
        #expect(Spelling.nearest("slt-psk", in: known) == "tls-psk")
        #expect(Spelling.nearest("completely-else", in: known) == nil)
        #expect(Spelling.nearest("", in: known) == nil)
        #expect(Spelling.advice("zzz", known: known).contains("live-tcp, state-dir"))
    }
}

private final class EventSink: Sendable {
    private let kept = Mutex<[String]>([])
    func add(_ line: String) { kept.withLock { $0.append(line) } }
    var lines: [String] { kept.withLock { $0 } }
}
