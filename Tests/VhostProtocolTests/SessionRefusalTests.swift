import Testing
import UnitSupport
import VhostClient
import VhostProtocol

/// Whatever a front-end should not say, and what it is told.
@Suite("Refused messages")
struct SessionRefusalTests {
    /// A message, the state it is sent in, and the refusal.
    struct Row: Sendable, CustomTestStringConvertible {
        enum State: Sendable { case fresh, agreed, running }
        let name: String
        let state: State
        let message: ClientMessage
        let refusal: SessionRefusal
        var testDescription: String { name }

        init(
            _ name: String, _ state: State, _ message: ClientMessage, _ refusal: SessionRefusal
        ) {
            self.name = name
            self.state = state
            self.message = message
            self.refusal = refusal
        }

        func rig() -> SessionRig {
            switch state {
            case .fresh: SessionRig()
            case .agreed: .agreed()
            case .running: .running()
            }
        }
    }

    private static func changed(
        _ message: ClientMessage, _ change: (inout ClientMessage) -> Void
    ) -> ClientMessage {
        var message = message
        change(&message)
        return message
    }

    private static let region = SessionRig.memory
    private static func at(
        _ guest: UInt64, _ size: UInt64, user: UInt64 = 1 << 40, offset: UInt64 = 0
    ) -> ClientRegion {
        ClientRegion(guest: guest, size: size, user: user, offset: offset)
    }
    private static func checked(_ region: ClientRegion) -> MemoryRegion {
        MemoryRegion(
            guestAddress: region.guest, byteCount: region.size, userAddress: region.user,
            fileOffset: region.offset)
    }
    private static func ring(_ address: UInt64, used: UInt64, available: UInt64) -> ClientMessage {
        .setAddresses(0, descriptors: address, used: used, available: available)
    }

    private static let wrongMessages: [Row] = [
        Row("an unknown request", .agreed, ClientMessage(99), .message(.unknownRequest(99))),
        Row("request zero", .agreed, ClientMessage(0), .message(.unknownRequest(0))),
        Row("a log's base", .agreed, ClientMessage(6), .message(.unknownRequest(6))),
        Row("a status", .agreed, ClientMessage(39), .message(.unknownRequest(39))),
        Row(
            "a payload where none belongs", .agreed, ClientMessage(1, [0]),
            .message(.wrongPayloadSize(.getFeatures, byteCount: 1))),
        Row(
            "features of four bytes", .agreed, ClientMessage(2, [0, 0, 0, 0]),
            .message(.wrongPayloadSize(.setFeatures, byteCount: 4))),
        Row(
            "a descriptor where none belongs", .agreed,
            changed(.setFeatures(0)) { $0.descriptors = 1 },
            .message(.wrongDescriptorCount(.setFeatures, count: 1))),
        Row(
            "a kick without its descriptor", .agreed, changed(.setKick(0)) { $0.descriptors = 0 },
            .message(.wrongDescriptorCount(.setQueueKick, count: 0))),
        Row(
            "a kick with two", .agreed, changed(.setKick(0)) { $0.descriptors = 2 },
            .message(.wrongDescriptorCount(.setQueueKick, count: 2))),
        Row(
            "a call that says it has none and has one", .agreed,
            changed(.setCall(0, isPresent: false)) { $0.descriptors = 1 },
            .message(.wrongDescriptorCount(.setQueueCall, count: 1))),
        Row(
            "a kick with unknown bits", .agreed, .setKick(1 << 9),
            .message(.unknownQueueBits(1 << 9))),
        Row(
            "no regions", .agreed, .setMemory([]), .message(.wrongRegionCount(0))),
        Row(
            "nine regions", .agreed,
            .setMemory((0..<9).map { at($0 << 20, 4096) }), .message(.wrongRegionCount(9))),
        Row(
            "fewer descriptors than regions", .agreed,
            changed(.setMemory([region])) { $0.descriptors = 0 },
            .message(.wrongDescriptorCount(.setMemoryTable, count: 0))),
        Row(
            "a table that is too short", .agreed,
            changed(.setMemory([region])) { $0.payload.removeLast() },
            .message(.wrongPayloadSize(.setMemoryTable, byteCount: 39))),
        Row(
            "a table without a header", .agreed, ClientMessage(5, [1]),
            .message(.wrongPayloadSize(.setMemoryTable, byteCount: 1))),
        Row(
            "a region without a descriptor", .agreed,
            changed(.addRegion(region)) { $0.descriptors = 0 },
            .message(.wrongDescriptorCount(.addRegion, count: 0))),
        Row(
            "a removal with two descriptors", .agreed, .removeRegion(region, descriptors: 2),
            .message(.wrongDescriptorCount(.removeRegion, count: 2))),
        Row("neither on nor off", .agreed, .setEnable(0, 2), .message(.notABoolean(2))),
        Row(
            "an index of 17 bits", .agreed, .setBase(0, 65536),
            .message(.numberTooLarge(.setQueueBase, 65536))),
    ]

    private static let wrongMoments: [Row] = [
        Row("features from nowhere", .fresh, .setFeatures(1 << 26), .featuresNotOffered(1 << 26)),
        Row(
            "a packed ring", .fresh, .setFeatures(1 << 34 | 1 << 32),
            .featuresNotOffered(1 << 34)),
        Row(
            "extensions from nowhere", .fresh, .setProtocolFeatures(.max),
            .protocolFeaturesNotOffered(~SessionRig.extensions)),
        Row("features while a queue runs", .running, .setFeatures(1 << 32), .featuresInUse),
        Row("slots unasked", .fresh, .getSlots, .notNegotiated(.getMemorySlots)),
        Row("a region unasked", .fresh, .addRegion(region), .notNegotiated(.addRegion)),
        Row(
            "an area unasked", .fresh, .getInflight(queues: 1, size: 1),
            .notNegotiated(.getInflight)),
        Row("a reset unasked", .fresh, .resetDevice, .notNegotiated(.resetDevice)),
        Row("enabling unasked", .fresh, .setEnable(0, 1), .notNegotiated(.setQueueEnable)),
        Row("a queue too many", .agreed, .setSize(4, 128), .unknownQueue(4)),
        Row("queue 2^32-1", .agreed, .setBase(.max, 0), .unknownQueue(4_294_967_295)),
        Row("a kick for no queue", .agreed, .setKick(255), .unknownQueue(255)),
        Row("a call for no queue", .agreed, .setCall(4), .unknownQueue(4)),
        Row("an error for no queue", .agreed, .setError(4), .unknownQueue(4)),
        Row("the base of no queue", .agreed, .getBase(4), .unknownQueue(4)),
        Row("no entries", .agreed, .setSize(0, 0), .queueSize(queue: 0, 0)),
        Row("three entries", .agreed, .setSize(0, 3), .queueSize(queue: 0, 3)),
        Row("2048 entries", .agreed, .setSize(0, 2048), .queueSize(queue: 0, 2048)),
        Row("2^31 entries", .agreed, .setSize(0, 1 << 31), .queueSize(queue: 0, 1 << 31)),
        Row(
            "a log of a ring", .agreed,
            .setAddresses(0, descriptors: 0, used: 0, available: 0, flags: 1),
            .addressFlags(queue: 0, 1)),
        Row("a kick too early", .agreed, .setKick(0), .queueNotSetUp(0)),
        Row(
            "a kick that is no kick", .agreed, ClientMessage(12, little(UInt64(256))),
            .kickWithoutDescriptor(queue: 0)),
        Row("another size while it runs", .running, .setSize(0, 64), .queueRuns(0)),
        Row("other addresses while it runs", .running, SessionRig.addresses(0), .queueRuns(0)),
        Row("another base while it runs", .running, .setBase(0, 9), .queueRuns(0)),
        Row(
            "a write to the configuration", .agreed, .setConfig(offset: 32, [1]),
            .configReadOnly),
        Row(
            "no queues in an area", .agreed, .getInflight(queues: 0, size: 8),
            .inflightShape(
                InflightDescription(byteCount: 0, offset: 0, queueCount: 0, queueSize: 8))),
        Row(
            "257 queues in an area", .agreed, .getInflight(queues: 257, size: 8),
            .inflightShape(
                InflightDescription(byteCount: 0, offset: 0, queueCount: 257, queueSize: 8))),
        Row(
            "an area that is too small", .agreed, .setInflight(bytes: 2111, queues: 1, size: 128),
            .inflightShape(
                InflightDescription(byteCount: 2111, offset: 0, queueCount: 1, queueSize: 128))),
        Row(
            "an area at an odd place", .agreed,
            .setInflight(bytes: 4096, offset: 64, queues: 1, size: 128),
            .inflightShape(
                InflightDescription(byteCount: 4096, offset: 64, queueCount: 1, queueSize: 128))),
        Row(
            "an area behind the last byte", .agreed,
            .setInflight(bytes: 4096, offset: 1 << 63, queues: 1, size: 128),
            .inflightShape(
                InflightDescription(
                    byteCount: 4096, offset: 1 << 63, queueCount: 1, queueSize: 128))),
        Row(
            "an area while a queue runs", .running,
            .setInflight(bytes: 4096, queues: 1, size: 128), .inflightInUse),
    ]

    private static let wrongMemory: [Row] = [
        Row("a region of nothing", .agreed, .addRegion(at(1 << 32, 0)), .memory(.empty)),
        Row(
            "a region from an odd address", .agreed, .addRegion(at(1 << 32 + 512, 4096)),
            .memory(.notAligned(checked(at(1 << 32 + 512, 4096))))),
        Row(
            "a region of half a page", .agreed, .addRegion(at(1 << 32, 2048)),
            .memory(.notAligned(checked(at(1 << 32, 2048))))),
        Row(
            "a region at an odd offset", .agreed, .addRegion(at(1 << 32, 4096, offset: 1)),
            .memory(.notAligned(checked(at(1 << 32, 4096, offset: 1))))),
        Row(
            "a region of an odd user address", .agreed, .addRegion(at(1 << 32, 4096, user: 8)),
            .memory(.notAligned(checked(at(1 << 32, 4096, user: 8))))),
        Row(
            "a region past the last address", .agreed, .addRegion(at(0 &- 4096, 8192)),
            .memory(.endsBeyondAddresses(checked(at(0 &- 4096, 8192))))),
        Row(
            "a region past the front-end's last address", .agreed,
            .addRegion(at(1 << 32, 8192, user: 0 &- 4096)),
            .memory(.endsBeyondAddresses(checked(at(1 << 32, 8192, user: 0 &- 4096))))),
        Row(
            "a region past the largest file", .agreed,
            .addRegion(at(1 << 32, 8192, offset: 1 << 63 - 4096)),
            .memory(.endsBeyondAddresses(checked(at(1 << 32, 8192, offset: 1 << 63 - 4096))))),
        Row(
            "64 TiB", .agreed, .addRegion(at(1 << 50, 1 << 46)), .memory(.tooMuchMemory)),
        Row(
            "32 TiB and one", .agreed, .addRegion(at(1 << 50, 1 << 45)), .memory(.tooMuchMemory)),
        Row(
            "the same region twice", .agreed, .addRegion(region),
            .memory(.overlaps(guestAddress: 0))),
        Row(
            "a region over the end of another", .agreed, .addRegion(at(1 << 20 - 4096, 8192)),
            .memory(.overlaps(guestAddress: 1 << 20 - 4096))),
        Row(
            "a table that overlaps itself", .agreed,
            .setMemory([at(1 << 32, 8192), at(1 << 32 + 4096, 4096)]),
            .memory(.overlaps(guestAddress: 1 << 32 + 4096))),
        Row(
            "a table that overlaps itself the other way", .agreed,
            .setMemory([at(1 << 32 + 4096, 4096), at(1 << 32, 8192)]),
            .memory(.overlaps(guestAddress: 1 << 32 + 4096))),
        Row(
            "the removal of what is not there", .agreed, .removeRegion(at(0, 4096)),
            .memory(.unknownRegion(checked(at(0, 4096))))),
        Row(
            "the removal of another user address", .agreed,
            .removeRegion(at(0, 1 << 20)), .memory(.unknownRegion(checked(at(0, 1 << 20))))),
        Row(
            "the removal of rings in use", .running, .removeRegion(region),
            .memory(.ringsInUse(queue: 0))),
        Row(
            "a table without the rings in use", .running, .setMemory([at(0, 1 << 20)]),
            .memory(.ringsInUse(queue: 0))),
        Row(
            "a table that moves the rings in use", .running,
            .setMemory([at(1 << 32, 1 << 20, user: region.user)]),
            .memory(.ringsInUse(queue: 0))),
    ]

    private static let rows = wrongMessages + wrongMoments + wrongMemory

    @Test("a refused message is answered and changes nothing, or ends the session", arguments: rows)
    func table(row: Row) throws {
        var rig = row.rig()
        let before = "\(rig.session)"
        let first = rig.send(row.message)
        #expect(first.action == nil)
        if row.refusal == .configReadOnly {
            #expect(first.end == .refused(.configReadOnly, nil))
        } else {
            #expect(first.end == .close(row.refusal))
        }
        guard row.state != .fresh else { return }
        rig = row.rig()
        let second = rig.send(row.message.acknowledged)
        if case .refused(let refusal, let reply) = second.end {
            #expect(refusal == row.refusal)
            #expect(try ClientReply(#require(reply).bytes, to: row.message.request).word == 1)
            #expect("\(rig.session)" == before)
            #expect(try rig.reply(.getQueueCount).word == 4)
        } else {
            // Their answer is a number: there is none that says no.
            #expect([1, 11, 31].contains(row.message.request))
            #expect(second.end == .close(row.refusal))
        }
        #expect(!row.refusal.text.isEmpty)
    }

    @Test("a part of the configuration space that is not there is answered with nothing")
    func configRange() throws {
        let wrong: [ClientMessage] = [
            .getConfig(offset: 250, size: 7), .getConfig(offset: .max, size: 1),
            .getConfig(offset: 0, size: 257), .getConfig(offset: 0, size: 8, flags: 2),
            ClientMessage(24, [1, 2, 3]),
            ClientMessage(24, little(UInt32(0)) + little(UInt32(9)) + little(UInt32(0))),
        ]
        for message in wrong {
            var rig = SessionRig.agreed()
            guard case .refused(_, let reply) = rig.send(message).end else {
                Issue.record("\(message) is not refused")
                continue
            }
            #expect(try ClientReply(#require(reply).bytes, to: 24).payload.isEmpty)
            #expect(try rig.reply(.getQueueCount).word == 4)
        }
    }

    @Test("rings that are not aligned, or not in one region, do not start", arguments: 0...8)
    func rings(which: Int) {
        let start = region(0)
        let end = start + Self.region.size
        let wrong: [ClientMessage] = [
            Self.ring(start + 8, used: start + 0x1000, available: start + 0x2000),
            Self.ring(start, used: start + 0x1002, available: start + 0x2000),
            Self.ring(start, used: start + 0x1000, available: start + 0x2001),
            Self.ring(end - 0x7f0, used: start + 0x1000, available: start + 0x2000),
            Self.ring(start, used: end - 1024, available: start + 0x2000),
            Self.ring(start, used: start + 0x1000, available: end - 260),
            Self.ring(0, used: start + 0x1000, available: start + 0x2000),
            Self.ring(start, used: .max - 3, available: start + 0x2000),
            Self.ring(start - 0x400, used: start + 0x1000, available: start + 0x2000),
        ]
        var rig = SessionRig.agreed()
        _ = rig.send(.setSize(0, 128))
        #expect(rig.send(wrong[which]).end == .proceed)
        guard case .close(.ringOutsideMemory(queue: 0, _)) = rig.send(.setKick(0)).end else {
            Issue.record("the queue starts")
            return
        }
    }

    private func region(_ offset: UInt64) -> UInt64 { Self.region.user + offset }

    @Test("a queue that the in-flight area has no room for does not start")
    func inflightTooSmall() {
        var rig = SessionRig.agreed()
        _ = rig.send(.setInflight(bytes: 1 << 20, queues: 1, size: 128))
        for message in SessionRig.queue(3).dropLast(2) { _ = rig.send(message) }
        #expect(rig.send(.setKick(3)).end == .close(.inflightTooSmall(queue: 3)))
    }

    @Test("a queue longer than its part of the in-flight area starts without it, as of firmware's")
    func inflightTooShort() {
        var rig = SessionRig.agreed()
        _ = rig.send(.setInflight(bytes: 1 << 20, queues: 4, size: 64))
        for message in SessionRig.queue(3).dropLast(2) { _ = rig.send(message) }
        guard case .changeQueue(3, .start(let setup)) = rig.send(.setKick(3)).action else {
            Issue.record("the queue does not start")
            return
        }
        #expect(setup.inflightOffset == nil && setup.size == 128)
    }

    @Test("a header that is none ends the session")
    func headers() {
        func fault(_ message: ClientMessage) -> MessageFault? {
            let bytes = message.bytes
            do throws(MessageFault) {
                _ = try MessageHeader(bytes.span)
                return nil
            } catch { return error }
        }
        #expect(fault(ClientMessage(1, flags: 0)) == .wrongVersion(0))
        #expect(fault(ClientMessage(1, flags: 2)) == .wrongVersion(2))
        #expect(fault(ClientMessage(1, flags: 5)) == .unknownFlags(5))
        #expect(fault(ClientMessage(1, flags: 17)) == .unknownFlags(17))
        var long = ClientMessage(1)
        for announced in [UInt32(513), 4096, .max] {
            long.announced = announced
            #expect(fault(long) == .payloadTooLong(announced))
        }
        #expect(fault(ClientMessage(1, flags: 9)) == nil)
    }

    @Test("no more regions than there are slots")
    func slots() {
        var rig = SessionRig.agreed()
        for index in 1..<509 {
            let region = Self.at(UInt64(index) << 20, 4096, user: UInt64(index) << 20)
            #expect(rig.send(.addRegion(region)).end == .proceed)
        }
        #expect(rig.session.memory.entries.count == 509)
        #expect(
            rig.send(.addRegion(Self.at(1 << 50, 4096))).end == .close(.memory(.tooManyRegions)))
    }

    @Test("random messages never trap, and what is mapped or started is sound", arguments: 1...8)
    func garbage(seed: Int) {
        var random = SplitMix64(seed: UInt64(seed))
        var started = 0
        for _ in 0..<120 {
            var rig = random.below(3) == 0 ? SessionRig() : SessionRig.agreed()
            var script = (0..<3).flatMap { _ in SessionRig.queue(UInt32(random.below(2))) }
            for _ in 0..<60 {
                let isScripted = random.below(2) == 0 && !script.isEmpty
                let message =
                    isScripted ? script.removeFirst().acknowledged : Self.random(&random)
                rig.outcome = random.below(8) == 0 ? .failed("it broke") : .done
                let (action, end) = rig.send(message)
                if case .changeQueue(let index, .start(let setup)) = action {
                    started += 1
                    #expect(index < 4 && setup.size <= 1024)
                }
                if case .close = end { break }
                Self.check(rig.session.memory)
            }
        }
        #expect(started > 10)
    }

    private static func check(_ memory: MemoryTable) {
        let regions = memory.entries.map(\.region)
        for (one, two) in zip(regions, regions.dropFirst()) {
            #expect(one.guestAddress + one.byteCount <= two.guestAddress)
        }
    }

    /// A message that is right, with something changed every other time.
    private static func random(_ random: inout SplitMix64) -> ClientMessage {
        let queue = UInt32(random.below(random.below(8) == 0 ? 5 : 2))
        let sizes: [UInt32] = [0, 1, 4, 128, 1024, 1025]
        let place = at(
            UInt64(random.below(8)) << 19, UInt64(1 + random.below(3)) << 19,
            user: region.user + UInt64(random.below(8)) << 19)
        let all: [ClientMessage] = [
            .getFeatures, .setFeatures(random.below(4) > 0 ? SessionRig.features : random.next()),
            .setOwner, .setMemory([place, region]), .setMemory([region]),
            .setSize(queue, sizes[random.below(6)]), SessionRig.addresses(queue),
            .setBase(queue, UInt32(random.below(65537))), .getBase(queue),
            .setKick(UInt64(queue)), .setKick(UInt64(queue)), .setCall(UInt64(queue)),
            .setError(UInt64(queue)), .getProtocolFeatures,
            .setProtocolFeatures(SessionRig.extensions), .getQueueCount,
            .setEnable(queue, UInt32(random.below(2))),
            .getConfig(offset: UInt32(random.below(300)), size: random.below(300)),
            .setConfig(offset: 0, [1]), .getInflight(queues: UInt16(queue), size: 128),
            .setInflight(bytes: UInt64(random.below(20000)), queues: 4, size: 128),
            .resetDevice, .getSlots, .addRegion(place), .removeRegion(place),
        ]
        var message = all[random.below(all.count)]
        if random.below(8) == 0 {
            switch random.below(4) {
            case 0: message.descriptors = random.below(10)
            case 1: message.request = UInt32(random.below(64))
            case 2: if !message.payload.isEmpty { message.payload.removeLast() }
            default:
                if !message.payload.isEmpty {
                    message.payload[random.below(message.payload.count)] =
                        UInt8(truncatingIfNeeded: random.next())
                }
            }
        }
        return random.below(20) == 0 ? message : message.acknowledged
    }
}
