import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// A begin that is asked for again, as its answer was lost.
@Suite struct BegunBeforeTests {
    private static let id = "0A6E7426-57E6-4DE4-A80C-853FA225681B"

    private static func request(_ fixture: ControlFixture) -> BeginRequest {
        BeginRequest(
            backupXML: fixture.backupXML(socket: fixture.runDirectory + "/x.sock"),
            checkpointXML: "<domaincheckpoint><name>c1</name></domaincheckpoint>", id: id)
    }

    private static func manager(_ fixture: ControlFixture) async throws -> JobManager {
        let manager = try await fixture.manager(stored: true)
        try await manager.define(xml: fixture.domainXML())
        try await manager.define(xml: fixture.domainXML("vm2"))
        return manager
    }

    @Test("the same id begins nothing twice: the answer is the job's, also while it is being begun")
    func again() async throws {
        let fixture = try ControlFixture()
        let manager = try await Self.manager(fixture)
        let begins = Mutex(0)
        fixture.engine.change {
            $0.onBegin = { _ in
                begins.withLock { $0 += 1 }
                Thread.sleep(forTimeInterval: 0.1)
            }
        }
        let request = Self.request(fixture)
        async let first = manager.begin(domain: "vm1", request)
        async let second = manager.begin(domain: "vm1", request)
        let answers = try await [first, second]
        #expect(answers[0].id == Self.id.lowercased())
        #expect(answers[0] == answers[1])
        #expect(answers[0].checkpoint == "c1" && !answers[0].exports.isEmpty)
        #expect(try await manager.begin(domain: "vm1", request) == answers[0])
        #expect(begins.withLock { $0 } == 1)
        #expect(fixture.engine.jobCount == 1)
        #expect(try await manager.listJobs(domain: "vm1").count == 1)
    }

    @Test("an id of another domain's job, of one that is over, or none at all, is refused")
    func refused() async throws {
        let fixture = try ControlFixture()
        let manager = try await Self.manager(fixture)
        var request = Self.request(fixture)
        let job = try await manager.begin(domain: "vm1", request)
        func expect(_ text: String, domain: String = "vm1") async {
            do throws(ControlError) {
                _ = try await manager.begin(domain: domain, request)
                Issue.record("it is begun")
            } catch {
                #expect(error.message.contains(text), "\(error.message)")
            }
        }
        await expect("is one of domain 'vm1'", domain: "vm2")
        fixture.engine.breakJob(job.id, "scratch is full")
        #expect(
            try await eventually {
                try await manager.listJobs(domain: "vm1").first?.state == "broken"
            })
        await expect("is broken")
        _ = try await manager.end(domain: "vm1", job: job.id, cause: .success)
        await expect("has ended as failed: scratch is full")
        for text in ["", "../x", "job"] {
            request.id = text
            await expect("must be a UUID")
        }
        #expect(fixture.engine.jobCount == 0)
    }
}
