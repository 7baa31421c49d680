import Control
import Foundation
import ServerInterface
import Testing

/// The manager is entered again while it waits for the engine.
@Suite struct ReentryTests {
    @Test("P6: jobs that begin while others are being ended do no harm to them")
    func endsAndBegins() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        fixture.engine.change { $0.endMilliseconds = 20 }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<60 {
                group.addTask {
                    let job = try await manager.begin(domain: "vm1", BeginRequest())
                    let ended = try await manager.end(
                        domain: "vm1", job: job.id, cause: .success)
                    #expect(ended.jobType == "Completed")
                }
            }
            try await group.waitForAll()
        }
        #expect(try await manager.listJobs(domain: nil).isEmpty)
        #expect(fixture.engine.jobCount == 0)
    }
}
