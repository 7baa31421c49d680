import Testing
import VhostClient
import VhostProtocol

@Suite("vhost-user sessions")
struct SessionTests {
    @Test("what is offered are the features that are there, and no others")
    func offered() throws {
        var rig = SessionRig()
        let writable: UInt64 =
            1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 28 | 1 << 29
            | 1 << 30 | 1 << 32
        #expect(try rig.reply(.getFeatures).word == writable)
        #expect(try rig.reply(.getProtocolFeatures).word == SessionRig.extensions)
        #expect(try rig.reply(.getQueueCount).word == 4)
        var readOnly = SessionRig(
            BlockDescription(sizeBytes: 512, isReadOnly: true, queueCount: 1, identity: ""))
        #expect(
            try readOnly.reply(.getFeatures).word
                == writable & ~(1 << 13 | 1 << 14) | 1 << 5)
    }

    @Test("the configuration space says what the disk is")
    func config() throws {
        var rig = SessionRig.agreed()
        let reply = try rig.reply(.getConfig(offset: 0, size: 96)).payload
        #expect(Array(reply.prefix(12)) == [0, 0, 0, 0, 96, 0, 0, 0, 0, 0, 0, 0])
        let space = Array(reply[12...])
        #expect(space.count == 96)
        #expect(number(space, 0, as: UInt64.self) == 1 << 21)
        #expect(number(space, 12, as: UInt32.self) == 126)
        #expect(number(space, 20, as: UInt32.self) == 512)
        #expect(space[24] == 3 && space[25] == 0)
        #expect(number(space, 26, as: UInt16.self) == 8)
        #expect(number(space, 28, as: UInt32.self) == 128)
        #expect(number(space, 34, as: UInt16.self) == 4)
        #expect(number(space, 36, as: UInt32.self) == 2_097_152)
        #expect(number(space, 40, as: UInt32.self) == 1)
        #expect(number(space, 44, as: UInt32.self) == 8)
        #expect(number(space, 48, as: UInt32.self) == 2_097_152)
        #expect(number(space, 52, as: UInt32.self) == 1)
        #expect(space[56] == 1)
        #expect(space[57...].allSatisfy { $0 == 0 })
        rig.session.resized(sizeBytes: 1 << 20)
        let part = try rig.reply(.getConfig(offset: 1, size: 2)).payload
        #expect(part[12...] == [8, 0])
        #expect(try rig.reply(.getConfig(offset: 256, size: 0)).payload.count == 12)
    }

    @Test("a queue starts with its kick, is paused and resumed, and says where it stopped")
    func queueLife() throws {
        var rig = SessionRig.agreed()
        for message in SessionRig.queue(1).dropLast(2) {
            #expect(rig.send(message).end == .proceed)
        }
        let (start, end) = rig.send(.setKick(1))
        #expect(end == .proceed)
        let rings = RingAddresses(descriptors: 0x4000, available: 0x6000, used: 0x5000)
        #expect(
            start
                == .changeQueue(
                    index: 1,
                    .start(
                        QueueSetup(
                            size: 128, base: 0, rings: rings, hasEventIndex: true,
                            hasIndirectDescriptors: true, isEnabled: false))))
        #expect(rig.session.startedQueues == [1])
        #expect(rig.send(.setEnable(1, 1)).action == .changeQueue(index: 1, .resume))
        #expect(rig.send(.setEnable(1, 1)).action == nil)
        #expect(rig.send(.setKick(1)).action == .changeQueue(index: 1, .setKick))
        #expect(
            rig.send(.setCall(1, isPresent: false)).action
                == .changeQueue(index: 1, .setCall(isPresent: false)))
        #expect(
            rig.send(.setError(1)).action == .changeQueue(index: 1, .setError(isPresent: true)))
        #expect(rig.send(.setEnable(1, 0)).action == .changeQueue(index: 1, .pause))
        let stop = try rig.reply(.getBase(1))
        #expect(stop.payload == little(UInt32(1)) + little(UInt32(7)))
        #expect(rig.session.startedQueues.isEmpty)
        #expect(try rig.reply(.getBase(1)).payload == stop.payload)
        _ = rig.send(.setEnable(1, 1))
        guard case .changeQueue(1, .start(let again)) = rig.send(.setKick(1)).action else {
            Issue.record("the queue does not start again")
            return
        }
        #expect(again.base == 7 && again.isEnabled)
    }

    @Test("without protocol features a queue runs as soon as it starts")
    func enabledAtOnce() throws {
        var rig = SessionRig.agreed(features: 1 << 32)
        for message in SessionRig.queue(0).dropLast(2) { _ = rig.send(message) }
        guard case .changeQueue(0, .start(let setup)) = rig.send(.setKick(0)).action else {
            Issue.record("the queue does not start")
            return
        }
        #expect(setup.isEnabled && !setup.hasEventIndex && !setup.hasIndirectDescriptors)
    }

    @Test("memory comes as a table or piece by piece, and each region has a name of its own")
    func memory() throws {
        var rig = SessionRig.agreed()
        let first = try #require(rig.session.memory.entries.first)
        let other = ClientRegion(guest: 1 << 32, size: 4096, user: 1 << 40, offset: 8192)
        guard case .changeMemory(let added, let removed) = rig.send(.addRegion(other)).action
        else {
            Issue.record("no memory is added")
            return
        }
        #expect(removed.isEmpty && added.count == 1 && added[0].descriptor == 0)
        #expect(added[0].region.fileOffset == 8192 && added[0].slot != first.slot)
        #expect(rig.session.memory.entries.count == 2)
        #expect(
            rig.send(.removeRegion(other, descriptors: 1)).action
                == .changeMemory(added: [], removed: [added[0].slot]))
        guard
            case .changeMemory(let replaced, let old) = rig.send(
                .setMemory([other, SessionRig.memory])
            ).action
        else {
            Issue.record("no memory is replaced")
            return
        }
        #expect(old == [first.slot] && replaced.map(\.descriptor) == [0, 1])
        #expect(replaced.allSatisfy { $0.slot != first.slot && $0.slot != added[0].slot })
        #expect(rig.session.memory.entries.map(\.region.guestAddress) == [0, 1 << 32])
        #expect(try rig.reply(.getSlots).word == 509)
    }

    @Test("memory that cannot be mapped leaves the old one, and the front-end is told")
    func mapFails() throws {
        var rig = SessionRig.agreed()
        let before = rig.session.memory
        rig.outcome = .failed("memory at 0x1000: no room")
        let other = ClientRegion(guest: 1 << 32, size: 4096, user: 1 << 40)
        let (_, told) = rig.send(ClientMessage.addRegion(other).acknowledged)
        guard case .refused(.failed(.addRegion, let reason), let reply?) = told else {
            Issue.record("\(told)")
            return
        }
        #expect(try ClientReply(reply.bytes, to: 37).word == 1)
        #expect(rig.session.memory == before)
        let refusal = SessionRefusal.failed(.addRegion, reason)
        #expect(refusal.text == "ADD_MEM_REG: memory at 0x1000: no room")
        #expect(rig.send(.addRegion(other)).end == .close(refusal))
    }

    @Test("the in-flight area is made, handed back, and divided among the queues")
    func inflight() throws {
        var rig = SessionRig.agreed()
        let bytes = ClientMessage.getInflight(queues: 4, size: 128)
        let (action, end) = rig.send(bytes)
        // 16 + 16 * 128, rounded up to 64.
        #expect(action == .makeInflight(byteCount: 4 * 2112))
        guard case .reply(let reply) = end else {
            Issue.record("no reply")
            return
        }
        #expect(reply.carriesInflight)
        let payload = try ClientReply(reply.bytes, to: 31).payload
        #expect(payload.count == 24 && number(payload, 0, as: UInt64.self) == 4 * 2112)
        #expect(number(payload, 16, as: UInt32.self) == 4 | 128 << 16)
        var short = bytes
        short.payload = Array(short.payload.prefix(20))
        #expect(try rig.reply(short).payload.count == 20)
        guard
            case .useInflight(let area) = rig.send(
                .setInflight(bytes: 4 * 2112, queues: 4, size: 128)
            ).action
        else {
            Issue.record("no area is used")
            return
        }
        #expect(area.byteCount == 4 * 2112 && area.fileOffset == 0)
        for message in SessionRig.queue(2).dropLast(2) { _ = rig.send(message) }
        guard case .changeQueue(2, .start(let setup)) = rig.send(.setKick(2)).action else {
            Issue.record("the queue does not start")
            return
        }
        #expect(setup.inflightOffset == 2 * 2112)
    }

    @Test("a reset stops all queues and forgets what the guest has agreed to, not its memory")
    func reset() throws {
        var rig = SessionRig.running()
        for message in SessionRig.queue(3) { _ = rig.send(message) }
        let memory = rig.session.memory
        let (action, end) = rig.send(ClientMessage.resetDevice.acknowledged)
        #expect(action == .reset(queues: [0, 3]))
        guard case .reply(let reply) = end else {
            Issue.record("no reply")
            return
        }
        #expect(try ClientReply(reply.bytes, to: 34).word == 0)
        #expect(rig.session.startedQueues.isEmpty && rig.session.features == [])
        #expect(rig.session.memory == memory)
        #expect(rig.send(.setKick(0)).end == .close(.queueNotSetUp(0)))
    }

    @Test("every message can be acknowledged once that is agreed on, and none before")
    func acknowledgements() throws {
        var rig = SessionRig()
        #expect(rig.send(ClientMessage.setOwner.acknowledged).end == .proceed)
        let agreed = rig.send(
            ClientMessage.setProtocolFeatures(SessionRig.extensions).acknowledged)
        #expect(agreed.end != .proceed)
        for message: ClientMessage in [
            .setOwner, .resetOwner, .setFeatures(SessionRig.features),
            .setMemory([SessionRig.memory]), .setSize(0, 64), .setBase(0, 3),
            SessionRig.addresses(0), .setKick(0), .setCall(0), .setError(0, isPresent: false),
            .setEnable(0, 1), .setEnable(0, 1),
        ] {
            #expect(try rig.reply(message.acknowledged).word == 0, "\(message.request)")
        }
        // Whatever has a reply of its own gets no other.
        #expect(try rig.reply(ClientMessage.getQueueCount.acknowledged).word == 4)
    }

    @Test("a memory table as long as its array is read as far as it is used")
    func wholeArray() {
        var rig = SessionRig.agreed()
        var message = ClientMessage.setMemory([SessionRig.memory])
        message.payload += [UInt8](repeating: 0xff, count: 7 * 32)
        #expect(rig.send(message).end == .proceed)
        #expect(rig.session.memory.entries.count == 1)
    }
}
