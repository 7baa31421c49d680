import Foundation
import LibvirtProtocol
import ServerInterface
import Synchronization
import Testing

@testable import Control

/// A guest's agent behind a libvirtd: what it is asked, and whether the guest stands still.
final class Agent: Sendable {
    /// What becomes of a freeze.
    enum Manner: Sendable {
        case willing
        /// The answer comes after so many milliseconds; the guest is frozen then.
        case slow(Int)
        /// The agent freezes and never says so.
        case frozenAndMute
        case refusing(Int32)
        /// Libvirtd dies with the freeze in its hands.
        case deadly
    }

    private struct State {
        var isFrozen = false
        var thawsToRefuse = 0
        var thaws = 0
        var wasFrozen = false
    }

    let manner: Manner
    private let state: Mutex<State>
    /// What a refusal says.
    let words: String
    init(_ manner: Manner, thawsToRefuse: Int = 0, words: String = "no") {
        self.manner = manner
        self.words = words
        state = Mutex(State(thawsToRefuse: thawsToRefuse))
    }

    var isFrozen: Bool { state.withLock { $0.isFrozen } }
    var wasFrozen: Bool { state.withLock { $0.wasFrozen } }
    var thaws: Int { state.withLock { $0.thaws } }

    func freeze() {
        state.withLock {
            $0.isFrozen = true
            $0.wasFrozen = true
        }
    }

    func script(_ packet: Packet, _ libvirtd: ScriptedLibvirtd) -> ScriptedLibvirtd.Answer {
        switch Procedure(rawValue: packet.header.procedure) {
        case .domainFSFreeze: return frozen()
        case .domainFSThaw:
            return state.withLock { state in
                state.thaws += 1
                guard state.thawsToRefuse == 0 else {
                    state.thawsToRefuse -= 1
                    return .error(68, "cannot acquire state change lock")
                }
                state.isFrozen = false
                return .results([0, 0, 0, 2])
            }
        case .domainIsActive: return .results([0, 0, 0, 1])
        default: return .error(3, "unsupported")
        }
    }

    private func frozen() -> ScriptedLibvirtd.Answer {
        switch manner {
        case .willing:
            freeze()
            return .results([0, 0, 0, 2])
        case .slow(let milliseconds):
            Task {
                try? await Task.sleep(for: .milliseconds(milliseconds))
                freeze()
            }
            return .later([0, 0, 0, 2], milliseconds: milliseconds + 20)
        case .frozenAndMute:
            freeze()
            return .silence
        case .refusing(let code): return .error(code, words)
        case .deadly:
            freeze()
            return .hangUp
        }
    }
}

/// The response timeout of an agent, as libvirtd has it.
private final class Timeout: Sendable {
    private let value = Mutex<Int32>(-2)
    var seconds: Int32 {
        get { value.withLock { $0 } }
        set { value.withLock { $0 = newValue } }
    }
}

@Suite("Quiesce: a guest that is frozen is thawed, whatever happens", .timeLimit(.minutes(2)))
struct GuestFreezerTests {
    let fixture: ControlFixture
    let events = EventLog()
    let uuid = "11111111-2222-4333-8444-555555555555"

    init() throws { fixture = try ControlFixture() }

    var path: String { fixture.root + "/libvirtd" }

    func limits() -> GuestFreezer.Limits {
        var limits = GuestFreezer.Limits()
        limits.freeze = .milliseconds(500)
        limits.frozen = .seconds(20)
        limits.thaw = .seconds(5)
        limits.attemptSeconds = 2
        limits.firstPause = .milliseconds(50)
        limits.longestPause = .milliseconds(200)
        return limits
    }

    func freezer(
        _ state: (any FreezeNotes)? = nil, _ limits: GuestFreezer.Limits? = nil
    ) -> GuestFreezer {
        GuestFreezer(
            upstream: UpstreamSettings(socketPath: path), state: state, events: events,
            limits: limits ?? self.limits())
    }

    func libvirtd(_ agent: Agent) async throws -> ScriptedLibvirtd {
        try await ScriptedLibvirtd(path) { agent.script($0, $1) }
    }

    @Test("a guest is frozen from one call to the other, and its record goes with the thaw")
    func plain() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let state = try StateDirectory(path: fixture.stateDirectory)
        let freezer = freezer(state)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        #expect(agent.isFrozen)
        #expect(state.freezes().records.map(\.uuid) == [uuid])
        #expect(await freezer.thaw(owner: "job"))
        #expect(!agent.isFrozen)
        #expect(try await eventually { state.freezes().records.isEmpty })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
        #expect(await !freezer.thaw(owner: "job"))
        let asked = try #require(
            libvirtd.calls.first { $0.header.procedure == Procedure.domainFSFreeze.rawValue })
        var arguments = XDRReader(asked.body)
        #expect(UUIDText.text(try arguments.domain().uuid) == uuid)
    }

    @Test("a freeze that hangs is refused after its time, and the guest is thawed all the same")
    func hangs() async throws {
        let agent = Agent(.frozenAndMute)
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        await #expect {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        } throws: {
            ($0 as? ControlError)?.code == "freeze-timed-out"
        }
        #expect(try await eventually { !agent.isFrozen && agent.thaws > 0 })
        // As long as the agent may still come to it, thaws follow.
        let soFar = agent.thaws
        #expect(try await eventually { agent.thaws > soFar })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
        await #expect(throws: ControlError.stillFrozen("vm1")) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
    }

    @Test("a freeze that comes after its time is thawed")
    func late() async throws {
        let agent = Agent(.slow(900))
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        await #expect(throws: ControlError.self) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
        #expect(try await eventually { agent.wasFrozen })
        #expect(try await eventually { !agent.isFrozen })
        #expect(
            try await eventually { events.recent.last?.event == .guestThawed })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
    }

    @Test("a thaw that fails is tried again, and is told of")
    func thawFails() async throws {
        let agent = Agent(.willing, thawsToRefuse: 3)
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        #expect(await freezer.thaw(owner: "job"))
        #expect(!agent.isFrozen)
        #expect(agent.thaws == 4)
        #expect(events.recent.count { $0.event == .guestThawFailed } == 1)
        #expect(libvirtd.count(.domainFSThaw) == 4)
    }

    @Test("a guest that stands still for too long is thawed, and the one who froze it is told")
    func watchdog() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        var limits = limits()
        limits.frozen = .milliseconds(200)
        let freezer = freezer(nil, limits)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        #expect(try await eventually { !agent.isFrozen })
        #expect(await !freezer.thaw(owner: "job"))
        #expect(libvirtd.count(.domainFSThaw) == 1)
    }

    @Test("a libvirtd that dies with a freeze in its hands is found again, and the guest is thawed")
    func libvirtdDies() async throws {
        let agent = Agent(.deadly)
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        await #expect(throws: ControlError.self) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
        #expect(try await eventually { !agent.isFrozen })
        #expect(libvirtd.count(.domainFSThaw) == 1)
    }

    @Test("a libvirtd that restarts between freeze and thaw does not keep the guest frozen")
    func restarts() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        try await libvirtd.die()
        async let thawed = freezer.thaw(owner: "job")
        try await Task.sleep(for: .milliseconds(300))
        try await libvirtd.listen()
        let isThawed = await thawed
        #expect(isThawed)
        #expect(!agent.isFrozen)
    }

    @Test("the next start thaws what a crash has left frozen")
    func crash() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        try StateDirectory(path: fixture.root + "/a").save(
            StoredFreeze(uuid: uuid, domain: "vm1"))
        agent.freeze()
        let state = try StateDirectory(path: fixture.root + "/a")
        let freezer = freezer(state)
        #expect(await freezer.recover().count == 1)
        #expect(try await eventually { !agent.isFrozen })
        #expect(try await eventually { state.freezes().records.isEmpty })
        #expect(libvirtd.count(.domainFSFreeze) == 0)
    }

    @Test("a stop of the server thaws")
    func stop() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        await freezer.shutdown()
        #expect(!agent.isFrozen)
        #expect(libvirtd.count(.domainFSThaw) == 1)
    }

    @Test(
        "where libvirtd has not asked the agent nothing is thawed, else it is",
        arguments: [(Int32(74), 0), (55, 0), (42, 0), (86, 1), (1, 1)])
    func refusal(code: Int32, thaws: Int) async throws {
        let agent = Agent(.refusing(code))
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        await #expect {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        } throws: {
            ($0 as? ControlError)?.libvirtCode == Int(code)
        }
        #expect(try await eventually { agent.thaws == thaws })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
    }

    @Test("an agent that is not connected was asked nothing: the next freeze may come at once")
    func notConnected() async throws {
        let agent = Agent(
            .refusing(86),
            words: "Guest agent is not responding: QEMU guest agent is not connected")
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        for _ in 0..<3 {
            await #expect {
                try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
            } throws: {
                ($0 as? ControlError)?.libvirtCode == 86
            }
        }
        #expect(libvirtd.count(.domainFSFreeze) == 3)
        #expect(libvirtd.count(.domainFSThaw) == 0)
    }

    @Test("who thaws ends his own freeze, not that of another who froze the guest since")
    func owners() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        var limits = limits()
        limits.frozen = .milliseconds(700)
        let freezer = freezer(nil, limits)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "slow")
        #expect(try await eventually { !agent.isFrozen })
        #expect(
            try await eventually {
                do throws(ControlError) {
                    try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
                    return true
                } catch {
                    return false
                }
            })
        #expect(await !freezer.thaw(owner: "slow"))
        #expect(agent.isFrozen)
        #expect(await freezer.thaw(owner: "job"))
        #expect(!agent.isFrozen)
        #expect(libvirtd.count(.domainFSFreeze) == 2)
    }

    @Test("two freezes of a guest at once: one is refused, and neither leaves it frozen")
    func atOnce() async throws {
        let agent = Agent(.slow(100))
        let libvirtd = try await libvirtd(agent)
        let freezer = freezer()
        async let first: Void = freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        #expect(try await eventually { libvirtd.count(.domainFSFreeze) == 1 })
        await #expect(throws: ControlError.stillFrozen("vm1")) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "other")
        }
        #expect(await !freezer.thaw(owner: "other"))
        try await first
        #expect(await freezer.thaw(owner: "job"))
        #expect(!agent.isFrozen)
    }

    @Test("a freeze that was made behind the thaw, and answered before it, is thawed again")
    func overtaken() async throws {
        let agent = Agent(.willing)
        let asked = Mutex<PacketHeader?>(nil)
        let libvirtd = try await ScriptedLibvirtd(path) { packet, libvirtd in
            switch Procedure(rawValue: packet.header.procedure) {
            case .domainFSFreeze:
                asked.withLock { $0 = packet.header }
                return .silence
            case .domainFSThaw:
                guard let freeze = asked.withLock({ $0.take() }) else {
                    return agent.script(packet, libvirtd)
                }
                agent.freeze()
                return .packets([
                    Packet(freeze.reply(.ok), body: [0, 0, 0, 2]),
                    Packet(packet.header.reply(.ok), body: [0, 0, 0, 2]),
                ])
            default: return agent.script(packet, libvirtd)
            }
        }
        let freezer = freezer()
        await #expect(throws: ControlError.self) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
        #expect(try await eventually { agent.wasFrozen })
        #expect(try await eventually { !agent.isFrozen })
        #expect(libvirtd.count(.domainFSThaw) == 2)
    }

    @Test("the agent's response timeout is put back before the next freeze sets its own")
    func responseTimeout() async throws {
        let agent = Agent(.willing)
        let timeout = Timeout()
        let libvirtd = try await ScriptedLibvirtd(path) { packet, libvirtd in
            guard packet.header.procedure == Procedure.domainAgentSetResponseTimeout.rawValue
            else { return agent.script(packet, libvirtd) }
            var arguments = XDRReader(packet.body)
            _ = try? arguments.domain()
            let seconds = (try? arguments.int()) ?? 0
            guard seconds == -2 else {
                timeout.seconds = seconds
                return .results([])
            }
            // Libvirtd comes to it later.
            Task {
                try? await Task.sleep(for: .milliseconds(200))
                timeout.seconds = seconds
            }
            return .later([], milliseconds: 250)
        }
        let freezer = freezer()
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "one")
        #expect(await freezer.thaw(owner: "one"))
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "two")
        try await Task.sleep(for: .milliseconds(300))
        #expect(timeout.seconds == 1)
        #expect(await freezer.thaw(owner: "two"))
        await freezer.shutdown()
        #expect(timeout.seconds == -2)
        #expect(libvirtd.count(.domainFSFreeze) == 2)
    }

    @Test("a server that stops before the agent was asked does not ask it any more")
    func stopInTheMiddle() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await ScriptedLibvirtd(path) { packet, libvirtd in
            packet.header.procedure == Procedure.domainAgentSetResponseTimeout.rawValue
                ? .later([], milliseconds: 300) : agent.script(packet, libvirtd)
        }
        let state = try StateDirectory(path: fixture.stateDirectory)
        let freezer = freezer(state)
        let uuid = uuid
        let freezing = Task {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
        #expect(
            try await eventually { libvirtd.count(.domainAgentSetResponseTimeout) == 1 })
        await freezer.shutdown()
        await #expect(throws: ControlError.serverStopping) { try await freezing.value }
        #expect(libvirtd.count(.domainFSFreeze) == 0)
        #expect(state.freezes().records.isEmpty)
        await #expect(throws: ControlError.serverStopping) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
    }

    // MARK: With the manager

    private func manager(_ freezer: GuestFreezer) async throws -> JobManager {
        var settings = JobManagerSettings(
            runDirectory: fixture.runDirectory,
            liveEndpoint: .unix(path: fixture.runDirectory + "/live.sock", mode: 0o600))
        settings.freezer = freezer
        let manager = JobManager(
            engine: fixture.engine, state: try StateDirectory(path: fixture.stateDirectory),
            settings: settings)
        await manager.activate()
        _ = try await manager.define(xml: fixture.domainXML())
        return manager
    }

    @Test("a begin that fails thaws, and leaves no job")
    func beginFails() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let manager = try await manager(freezer())
        fixture.engine.change { $0.beginFault = .holdTimedOut(milliseconds: 2000) }
        var request = BeginRequest()
        request.quiesces = true
        await #expect(throws: ControlError.self) { try await manager.begin(domain: "vm1", request) }
        #expect(agent.wasFrozen)
        #expect(!agent.isFrozen)
        #expect(await manager.jobs.isEmpty)
        let stoodStill = Delivered()
        fixture.engine.change { state in
            state.beginFault = nil
            state.onInstant = {
                if agent.isFrozen { stoodStill.end(.closed(path: "")) }
            }
        }
        _ = try await manager.begin(domain: "vm1", request)
        #expect(stoodStill.faults.count == 1)
        #expect(!agent.isFrozen)
        #expect(libvirtd.count(.domainFSFreeze) == 2)
    }

    @Test("a checkpoint whose guest does not freeze is not made, and a quiesced one is")
    func checkpoint() async throws {
        let agent = Agent(.refusing(86))
        let libvirtd = try await libvirtd(agent)
        let manager = try await manager(freezer())
        let xml = "<domaincheckpoint><name>c1</name></domaincheckpoint>"
        await #expect(throws: ControlError.self) {
            try await manager.createCheckpoint(domain: "vm1", xml: xml, quiesces: true)
        }
        #expect(await manager.domains["vm1"]?.checkpoints.names.isEmpty == true)
        try await libvirtd.die()
        let willing = Agent(.willing)
        let second = try await self.libvirtd(willing)
        #expect(try await eventually { willing.thaws > 0 || agent.thaws > 0 })
        try await Task.sleep(for: .milliseconds(300))
        try await manager.createCheckpoint(domain: "vm1", xml: xml, quiesces: true)
        #expect(willing.wasFrozen)
        #expect(!willing.isFrozen)
        #expect(second.count(.domainFSFreeze) == 1)
    }

    @Test("without a libvirtd nobody can be frozen, and clients are told in libvirt's words")
    func nobody() async throws {
        let manager = try await fixture.manager()
        _ = try await manager.define(xml: fixture.domainXML())
        var request = BeginRequest()
        request.quiesces = true
        await #expect(throws: ControlError.agentNotConfigured) {
            try await manager.begin(domain: "vm1", request)
        }
    }
}
