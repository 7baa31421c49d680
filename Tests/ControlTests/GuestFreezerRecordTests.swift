import Foundation
import LibvirtProtocol
import ServerInterface
import Synchronization
import Testing

@testable import Control

/// Notes of frozen guests in a directory that hangs for some guests until the test lets go.
private final class HangingNotes: FreezeNotes {
    private struct State {
        var saveHangs: Set<String> = []
        var removalHangs: Set<String> = []
        var notes: Set<String> = []
    }

    private let state = Mutex(State())

    func hang(saveOf save: Set<String> = [], removalOf removal: Set<String> = []) {
        state.withLock {
            $0.saveHangs = save
            $0.removalHangs = removal
        }
    }

    var notes: Set<String> { state.withLock { $0.notes } }

    // Ends by itself, so that a test whose freezer waits for it fails instead of hanging.
    private func wait(while hangs: (State) -> Bool) {
        for _ in 0..<1000 where state.withLock({ hangs($0) }) { usleep(10_000) }
    }

    func save(_ freeze: StoredFreeze) throws(ControlError) {
        wait { $0.saveHangs.contains(freeze.uuid) }
        state.withLock { _ = $0.notes.insert(freeze.uuid) }
    }

    func removeFreeze(of uuid: String) throws(ControlError) {
        wait { $0.removalHangs.contains(uuid) }
        state.withLock { _ = $0.notes.remove(uuid) }
    }

    func hasFreeze(of uuid: String) -> Bool { notes.contains(uuid) }

    func freezes() -> StateDirectory.Contents<StoredFreeze> { StateDirectory.Contents() }
}

/// Records of guests that may be frozen, and what they and other guests must not delay.
extension GuestFreezerTests {
    @Test("a guest that cannot be thawed is tried for as long as it takes, and its record stays")
    func neverGivenUp() async throws {
        let agent = Agent(.willing, thawsToRefuse: 12)
        let libvirtd = try await libvirtd(agent)
        let state = try StateDirectory(path: fixture.stateDirectory)
        var limits = limits()
        limits.thaw = .milliseconds(100)
        limits.reportAgain = .milliseconds(250)
        let freezer = freezer(state, limits)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        #expect(await freezer.thaw(owner: "job"))
        #expect(
            try await eventually { events.recent.count { $0.event == .guestThawFailed } >= 3 })
        await #expect(throws: ControlError.stillFrozen("vm1")) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "next")
        }
        #expect(agent.isFrozen)
        #expect(state.freezes().records.map(\.uuid) == [uuid])
        #expect(try await eventually { !agent.isFrozen && state.freezes().records.isEmpty })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
    }

    @Test("a freeze that was never asked for leaves the record of an earlier one where it is")
    func earlierRecord() async throws {
        let agent = Agent(.refusing(74))
        let libvirtd = try await libvirtd(agent)
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(StoredFreeze(uuid: uuid, domain: "vm1"))
        let freezer = freezer(state)
        await #expect(throws: ControlError.self) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        }
        await freezer.shutdown()
        #expect(state.freezes().records.map(\.uuid) == [uuid])
        #expect(libvirtd.count(.domainFSFreeze) == 1)
    }

    private static let disabled =
        "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command "
        + "guest-fsfreeze-freeze has been disabled: the agent is in frozen state"

    @Test(
        "a guest that somebody else has frozen is not thawed, one that we may have frozen is",
        arguments: [(false, 0), (true, 1)])
    func frozenByOthers(hasRecord: Bool, thaws: Int) async throws {
        let agent = Agent(.refusing(1), words: Self.disabled)
        agent.freeze()
        let libvirtd = try await libvirtd(agent)
        let state = try StateDirectory(path: fixture.stateDirectory)
        if hasRecord { try state.save(StoredFreeze(uuid: uuid, domain: "vm1")) }
        let freezer = freezer(state)
        await #expect {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        } throws: {
            ($0 as? ControlError)?.libvirtCode == 1
        }
        #expect(try await eventually { agent.thaws == thaws })
        await freezer.shutdown()
        #expect(agent.thaws == thaws)
        #expect(agent.isFrozen == (thaws == 0))
        #expect(try await eventually { state.freezes().records.isEmpty })
        #expect(libvirtd.count(.domainFSFreeze) == 1)
    }

    // MARK: A state directory that hangs

    @Test("a guest is thawed in time while the state directory hangs with another's record")
    func saveHangs() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let other = "11111111-2222-4333-8444-666666666666"
        let notes = HangingNotes()
        notes.hang(saveOf: [other])
        var limits = limits()
        limits.freeze = .milliseconds(1500)
        limits.frozen = .milliseconds(300)
        let freezer = freezer(notes, limits)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        let hanging = Task {
            try await freezer.freeze(domain: "vm2", uuid: other, owner: "other")
        }
        let begun = ContinuousClock.now
        #expect(try await eventually { !agent.isFrozen })
        #expect(ContinuousClock.now - begun < .seconds(4))
        await #expect {
            try await hanging.value
        } throws: {
            ($0 as? ControlError)?.message.contains("the state directory") == true
        }
        #expect(libvirtd.count(.domainFSFreeze) == 1)
        // What is written late after all is removed again, before the next one is written.
        notes.hang()
        #expect(
            try await eventually {
                do throws(ControlError) {
                    try await freezer.freeze(domain: "vm2", uuid: other, owner: "next")
                    return true
                } catch {
                    return false
                }
            })
        #expect(notes.notes == [other])
        await freezer.shutdown()
        #expect(notes.notes.isEmpty)
    }

    @Test("a record whose removal hangs holds up neither a thaw nor a stop, only the next freeze")
    func removalHangs() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await libvirtd(agent)
        let notes = HangingNotes()
        notes.hang(removalOf: [uuid])
        let freezer = freezer(notes)
        try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "job")
        let begun = ContinuousClock.now
        #expect(await freezer.thaw(owner: "job"))
        #expect(!agent.isFrozen)
        await #expect(throws: ControlError.self) {
            try await freezer.freeze(domain: "vm1", uuid: uuid, owner: "next")
        }
        #expect(ContinuousClock.now - begun < .seconds(4))
        #expect(libvirtd.count(.domainFSFreeze) == 1)
        #expect(notes.notes == [uuid])
        notes.hang()
        await freezer.shutdown()
        #expect(notes.notes.isEmpty)
    }

    @Test("a stop waits for many guests as long as for one")
    func stopOfMany() async throws {
        let agent = Agent(.willing)
        let libvirtd = try await ScriptedLibvirtd(path) { packet, libvirtd in
            packet.header.procedure == Procedure.domainFSThaw.rawValue
                ? .silence : agent.script(packet, libvirtd)
        }
        var limits = limits()
        limits.thaw = .seconds(1)
        limits.attemptSeconds = 60
        let freezer = freezer(nil, limits)
        for number in 1...8 {
            try await freezer.freeze(
                domain: "vm\(number)", uuid: "11111111-2222-4333-8444-00000000000\(number)",
                owner: "job\(number)")
        }
        let begun = ContinuousClock.now
        await freezer.shutdown()
        #expect(ContinuousClock.now - begun < .seconds(5))
        #expect(libvirtd.count(.domainFSThaw) == 8)
    }
}
