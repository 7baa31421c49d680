import Testing
import VhostClient
import VhostProtocol

/// Conversations in the order in which front-ends have them.
@Suite("Front-ends as they are")
struct FrontEndTests {
    private static let ram = ClientRegion(guest: 0, size: 256 << 20, user: 0x7fa8_c000_0000)

    /// What starts a queue, as qemu 7.2 says it.
    private static func start(_ queue: UInt32, at guest: UInt64) -> [ClientMessage] {
        let user = ram.user + guest
        return [
            .setSize(queue, 128), .setBase(queue, 0),
            .setAddresses(
                queue, descriptors: user, used: user + 2304, available: user + 2048),
            .setKick(UInt64(queue)),
        ]
    }

    /// Sends all, expects all to be taken, and returns their actions.
    private static func send(_ messages: [ClientMessage], _ rig: inout SessionRig)
        -> [SessionAction]
    {
        messages.compactMap { message in
            let (action, end) = rig.send(message)
            switch end {
            case .proceed, .reply: break
            case .refused(let refusal, _), .close(let refusal):
                Issue.record("request \(message.request): \(refusal.text)")
            case .perform: Issue.record("an action after an action")
            }
            return action
        }
    }

    private static func started(_ actions: [SessionAction]) -> [QueueSetup] {
        actions.compactMap {
            if case .changeQueue(_, .start(let setup)) = $0 { setup } else { nil }
        }
    }

    @Test("qemu 7.2: a firmware's old driver, then a kernel's, then the end of the back-end")
    func qemu() throws {
        var rig = SessionRig()
        let used: UInt64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15
        let calls = (UInt64(0)..<2).flatMap { [ClientMessage.setCall($0), .setError($0)] }
        var actions = Self.send(
            [
                .getFeatures, .getProtocolFeatures, .setProtocolFeatures(used), .getQueueCount,
                .getSlots, .setOwner, .getFeatures,
            ] + calls + [.getConfig(offset: 0, size: 60)], &rig)
        #expect(actions.count == 4)

        // The firmware knows neither version 1 nor events, and uses one queue of two.
        actions = Self.send(
            [
                .setFeatures(1 << 30), .getInflight(queues: 2, size: 128),
                .setInflight(bytes: 4224, queues: 2, size: 128), .setCall(0), .setCall(1),
                .setFeatures(1 << 30), ClientMessage.addRegion(Self.ram).acknowledged,
            ] + Self.start(0, at: 0xffd_b000) + [.setEnable(0, 1), .setEnable(1, 1)], &rig)
        let firmware = Self.started(actions)
        #expect(firmware.count == 1 && firmware[0].inflightOffset == 0)
        #expect(!firmware[0].hasEventIndex && !firmware[0].isEnabled)
        #expect(!rig.session.features.contains(.flush))
        rig.stoppedAt = 31
        _ = Self.send([.setEnable(0, 0), .setEnable(1, 0), .getBase(0)], &rig)

        actions = Self.send(
            [
                .setFeatures(SessionRig.features | 1 << 9),
                .getInflight(queues: 2, size: 128),
                .setInflight(bytes: 4224, queues: 2, size: 128), .setCall(0), .setCall(1),
                .setFeatures(SessionRig.features | 1 << 9),
            ] + Self.start(0, at: 43_687_936) + Self.start(1, at: 43_692_032)
                + [.setEnable(0, 1), .setEnable(1, 1)], &rig)
        let kernel = Self.started(actions)
        #expect(kernel.count == 2 && kernel.map(\.base) == [0, 0])
        #expect(kernel.allSatisfy { $0.hasEventIndex && $0.hasIndirectDescriptors })
        #expect(kernel.map(\.inflightOffset) == [0, 2112])
        #expect(rig.session.features.contains(.flush))
        #expect(rig.session.startedQueues == [0, 1])

        // A new back-end: the area comes back, memory piece by piece, queues run as before.
        rig = SessionRig()
        actions = Self.send(
            [
                .getFeatures, .getProtocolFeatures, .setProtocolFeatures(used), .getQueueCount,
                .getSlots, .setOwner, .getFeatures,
            ] + calls + [
                .getConfig(offset: 0, size: 60), .setFeatures(SessionRig.features | 1 << 9),
                .setInflight(bytes: 4224, queues: 2, size: 128), .setCall(0), .setCall(1),
                .setFeatures(SessionRig.features | 1 << 9),
                ClientMessage.addRegion(Self.ram).acknowledged,
            ] + Self.start(0, at: 43_687_936) + Self.start(1, at: 43_692_032)
                + [.setEnable(0, 1), .setEnable(1, 1)], &rig)
        #expect(Self.started(actions).map(\.inflightOffset) == [0, 2112])
    }

    @Test("qemu 7.2: a device that is plugged in on the connection of another starts afresh")
    func replug() throws {
        var rig = SessionRig()
        let used: UInt64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15
        let hello: [ClientMessage] = [
            .getFeatures, .getProtocolFeatures, .setProtocolFeatures(used), .getQueueCount,
            .getSlots, .setOwner, .getFeatures,
        ]
        let dimm = ClientRegion(guest: 1 << 32, size: 128 << 20, user: 1 << 40)
        let start: [ClientMessage] =
            [
                .setFeatures(SessionRig.features),
                ClientMessage.addRegion(Self.ram).acknowledged,
            ] + Self.start(0, at: 43_687_936) + [
                .setEnable(0, 1), ClientMessage.addRegion(dimm).acknowledged,
            ]
        #expect(Self.send(hello, &rig).isEmpty)
        _ = Self.send(start, &rig)
        // While a queue runs the same front-end owns the session, however often it says so.
        #expect(rig.send(.setOwner).action == nil && rig.session.startedQueues == [0])
        let slots = rig.session.memory.entries.map(\.slot)
        _ = Self.send(
            [
                .setEnable(0, 0), .getBase(0), .getInflight(queues: 1, size: 128),
                .setInflight(bytes: 2112, queues: 1, size: 128),
            ], &rig)
        #expect(Self.send(hello, &rig) == [.changeMemory(added: [], removed: slots)])
        #expect(rig.session.memory.entries.isEmpty)
        let again = Self.started(Self.send(start, &rig))
        #expect(again.map(\.base) == [0] && again.map(\.inflightOffset) == [nil])
        #expect(rig.session.memory.entries.count == 2)
    }

    @Test("front-ends in Rust: a call before its kick, memory as one table, every message answered")
    func rustVMM() {
        var rig = SessionRig()
        let messages: [ClientMessage] = [
            .setOwner, .getFeatures, .setFeatures(SessionRig.features), .getProtocolFeatures,
            .setProtocolFeatures(SessionRig.extensions), .getQueueCount,
        ]
        _ = Self.send(messages, &rig)
        let low = ClientRegion(guest: 0, size: 3 << 30, user: 1 << 40)
        let high = ClientRegion(guest: 1 << 32, size: 1 << 30, user: 1 << 41)
        let setUp: [ClientMessage] = [
            .setMemory([low, high]), .getConfig(offset: 0, size: 60), .setSize(0, 256),
            .setAddresses(
                0, descriptors: high.user, used: high.user + 0x2000,
                available: high.user + 0x1000), .setBase(0, 0), .setCall(0), .setKick(0),
            .setEnable(0, 1),
        ]
        let actions = Self.send(setUp.map { $0.acknowledged }, &rig)
        #expect(Self.started(actions).map(\.rings.descriptors) == [1 << 32])
        #expect(actions.last == .changeQueue(index: 0, .resume))
    }
}
