import Control
import Foundation
import ServerInterface
import Testing

/// Jobs that nobody reads.
@Suite struct IdleJobTests {
    private func manager(_ fixture: ControlFixture, idleAfter seconds: Int?) async throws
        -> JobManager
    {
        var settings = JobManagerSettings(
            runDirectory: fixture.runDirectory,
            liveEndpoint: .unix(path: fixture.runDirectory + "/live.sock", mode: 0o600))
        settings.idleAfterSeconds = seconds
        let manager = JobManager(engine: fixture.engine, state: nil, settings: settings)
        await manager.activate()
        try await manager.define(xml: fixture.domainXML())
        return manager
    }

    @Test("a job without a client is told of once, and again when one has come and gone")
    func idle() async throws {
        let fixture = try ControlFixture()
        let manager = try await manager(fixture, idleAfter: 1)
        fixture.engine.change { $0.jobClients = 0 }
        let job = try await manager.begin(domain: "vm1", BeginRequest())
        func told() -> [ControlEvent] { manager.events.recent.filter { $0.event == .jobIdle } }
        #expect(try await eventually { !told().isEmpty })
        #expect(told().first?.id == job.id && told().first?.domain == "vm1")
        #expect(told().first?.message?.contains("no client for 1 s") == true)
        // Long enough for three more looks.
        try await Task.sleep(for: .seconds(1))
        #expect(told().count == 1)
        fixture.engine.change { $0.jobClients = 1 }
        let asked = fixture.engine.look { $0.reportsAsked }
        #expect(try await eventually { fixture.engine.look { $0.reportsAsked } > asked + 1 })
        fixture.engine.change { $0.jobClients = 0 }
        #expect(try await eventually { told().count == 2 })
        await manager.shutdown()
    }

    @Test("a job that is read is not told of, and without a time none is")
    func busy() async throws {
        let fixture = try ControlFixture()
        let manager = try await manager(fixture, idleAfter: 1)
        _ = try await manager.begin(domain: "vm1", BeginRequest())
        let silent = try ControlFixture()
        let other = try await self.manager(silent, idleAfter: nil)
        silent.engine.change { $0.jobClients = 0 }
        _ = try await other.begin(domain: "vm1", BeginRequest())
        try await Task.sleep(for: .seconds(2))
        #expect(!manager.events.recent.contains { $0.event == .jobIdle })
        #expect(!other.events.recent.contains { $0.event == .jobIdle })
        await manager.shutdown()
        await other.shutdown()
    }

    @Test("a job whose time is over says so before it ends, and its end says how it came out")
    func expiry() async throws {
        let fixture = try ControlFixture()
        let manager = try await manager(fixture, idleAfter: nil)
        var request = BeginRequest()
        request.timeToLiveSeconds = 1
        let job = try await manager.begin(domain: "vm1", request)
        #expect(
            try await eventually { manager.events.recent.contains { $0.event == .jobEnd } })
        let events = manager.events.recent.filter { $0.id == job.id }
        #expect(events.map(\.event) == [.jobBegin, .jobExpired, .jobEnd])
        #expect(events.last?.outcome == "failed")
        await manager.shutdown()
    }
}
