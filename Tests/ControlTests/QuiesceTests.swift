import Control
import ServerInterface
import Synchronization
import Testing

/// For what a guest stands still.
@Suite struct QuiesceTests {
    /// Notes what is done, in its order.
    private final class Freezer: GuestFreezing {
        let steps = Mutex<[String]>([])
        private let fault: ControlError?

        init(_ fault: ControlError? = nil) { self.fault = fault }

        func note(_ step: String) { steps.withLock { $0.append(step) } }

        func freeze(
            domain name: String, uuid: String, owner: String
        ) async throws(ControlError) {
            note("freeze")
            if let fault { throw fault }
        }

        func thaw(owner: String) async -> Bool {
            note("thaw")
            return true
        }
    }

    private func manager(
        _ fixture: ControlFixture, _ freezer: Freezer?
    ) async throws -> JobManager {
        fixture.engine.change {
            $0.onBegin = { _ in freezer?.note("places") }
            $0.onInstant = { freezer?.note("instant") }
        }
        let manager = try await fixture.manager(stored: true) { $0.freezer = freezer }
        try await manager.define(xml: fixture.domainXML())
        try await manager.createCheckpoint(domain: "vm1", xml: checkpointXML("c1"))
        return manager
    }

    @Test("P2: a guest stands still for the instant, not while scratch is made")
    func order() async throws {
        let fixture = try ControlFixture()
        let freezer = Freezer()
        let manager = try await manager(fixture, freezer)
        let job = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: pullXML(""), quiesces: true))
        #expect(freezer.steps.withLock { $0 } == ["places", "freeze", "instant", "thaw"])
        try await manager.end(domain: "vm1", job: job.id, cause: .success)
        freezer.steps.withLock { $0 = [] }
        _ = try await manager.begin(domain: "vm1", BeginRequest(backupXML: pullXML("")))
        #expect(freezer.steps.withLock { $0 } == ["places", "instant"])
    }

    @Test("a guest that cannot be frozen has no instant, and nothing of the job stays")
    func refused() async throws {
        let fixture = try ControlFixture()
        let fault = ControlError(.operationTimeout, code: "x", status: 504, detail: "no agent")
        let freezer = Freezer(fault)
        let manager = try await manager(fixture, freezer)
        let request = BeginRequest(
            backupXML: pullXML(""), checkpointXML: checkpointXML("c2"), quiesces: true)
        let error = await #expect(throws: ControlError.self) {
            try await manager.begin(domain: "vm1", request)
        }
        #expect(error == fault)
        #expect(freezer.steps.withLock { $0 } == ["places", "freeze", "thaw"])
        #expect(fixture.engine.jobCount == 0)
        #expect(try await manager.listJobs(domain: nil).isEmpty)
        #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["c1"])
        #expect(fixture.chains["vda"] == ["c1"])
    }

    @Test("who cannot freeze guests is told before anything is made")
    func nobody() async throws {
        let fixture = try ControlFixture()
        let manager = try await manager(fixture, nil)
        let error = await #expect(throws: ControlError.self) {
            try await manager.begin(
                domain: "vm1", BeginRequest(backupXML: pullXML(""), quiesces: true))
        }
        #expect(error?.code == "agent-not-configured")
        #expect(fixture.engine.jobCount == 0)
    }

    @Test("a backup that turns out to be full only now lets the guest go on in between")
    func secondRound() async throws {
        let fixture = try ControlFixture()
        let freezer = Freezer()
        let manager = try await manager(fixture, freezer)
        fixture.engine.change {
            $0.onBegin = { _ in
                freezer.note("places")
                fixture.changeChain("vda") { $0 = [] }
            }
        }
        let job = try await manager.begin(
            domain: "vm1",
            BeginRequest(
                backupXML: pullXML("<incremental>c1</incremental>"), fallsBackToFull: true,
                quiesces: true))
        #expect(job.exports.map { $0.bitmap == nil } == [true, false])
        let round = ["places", "freeze", "instant", "thaw"]
        #expect(freezer.steps.withLock { $0 } == round + round)
    }
}
