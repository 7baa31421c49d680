import VhostClient
import VhostProtocol

/// A session and a front-end that says whatever a test wants.
struct SessionRig {
    var session: BackEndSession
    /// Where queues that are stopped say that they were.
    var stoppedAt: UInt16 = 7
    /// What actions come to.
    var outcome = ActionOutcome.done

    static let disk = BlockDescription(
        sizeBytes: 1 << 30, blockBytes: 512, physicalBlockBytes: 4096, optimalBytes: 65536,
        queueCount: 4, identity: "a disk")
    static let memory = ClientRegion(guest: 0, size: 1 << 20, user: 0x7f00_0000_0000)
    /// Extensions of the protocol that are offered: by their bits in the specification.
    static let extensions: UInt64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15
    /// Features that are used: VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC.
    static let features: UInt64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28

    init(_ disk: BlockDescription = Self.disk) { session = BackEndSession(disk) }

    /// A session that has agreed on features and memory.
    static func agreed(
        extensions: UInt64 = Self.extensions, features: UInt64 = Self.features
    ) -> SessionRig {
        var rig = SessionRig()
        for message: ClientMessage in [
            .setProtocolFeatures(extensions), .setOwner, .setFeatures(features),
            .setMemory([memory]),
        ] {
            _ = rig.send(message)
        }
        return rig
    }

    /// A session in which queue 0 runs.
    static func running() -> SessionRig {
        var rig = agreed()
        for message in queue(0) + [.setEnable(0, 1)] { _ = rig.send(message) }
        return rig
    }

    /// What sets up a queue and starts it, without the permission to run.
    static func queue(_ index: UInt32) -> [ClientMessage] {
        [
            .setSize(index, 128), .setBase(index, 0), addresses(index), .setKick(UInt64(index)),
            .setCall(UInt64(index)),
        ]
    }

    static func addresses(_ index: UInt32) -> ClientMessage {
        let start = memory.user + 0x4000 * UInt64(index)
        return .setAddresses(
            index, descriptors: start, used: start + 0x1000, available: start + 0x2000)
    }

    /// Sends a message, has its action done, and returns the action and how it ended.
    mutating func send(_ message: ClientMessage) -> (action: SessionAction?, end: SessionStep) {
        let bytes = message.bytes
        let header: MessageHeader
        do throws(MessageFault) { header = try MessageHeader(bytes.span) } catch {
            return (nil, .close(.message(error)))
        }
        let step = session.receive(
            header, bytes.span.extracting(12...), descriptors: message.descriptors)
        guard case .perform(let action) = step else { return (nil, step) }
        if case .stopQueue = action, outcome == .done {
            return (action, session.performed(.stopped(next: stoppedAt)))
        }
        return (action, session.performed(outcome))
    }

    /// The reply to a message that gets one.
    mutating func reply(_ message: ClientMessage) throws -> ClientReply {
        guard case .reply(let reply) = send(message).end else {
            throw ClientViolation("request \(message.request) gets no reply")
        }
        return try ClientReply(reply.bytes, to: message.request)
    }
}
