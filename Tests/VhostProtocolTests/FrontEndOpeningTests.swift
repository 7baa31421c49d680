import Testing
import VhostClient

@testable import VhostProtocol

/// The opening of a session from a front-end's side.
@Suite("A front-end opens a session")
struct FrontEndOpeningTests {
    private static let memoryBytes = SlotQueueLayout.byteCount + (1 << 20)

    /// Lets a back-end answer the message at hand; its actions.
    private static func step(
        _ opening: inout FrontEndOpening, _ session: inout BackEndSession
    ) throws -> SessionAction? {
        let message = try #require(opening.message)
        let header = try MessageHeader(message.bytes.span)
        #expect(message.bytes.count == MessageHeader.byteCount + header.payloadBytes)
        var action: SessionAction?
        var step = session.receive(
            header, message.bytes.span.extracting(12...),
            descriptors: message.passed == .nothing ? 0 : 1)
        if case .perform(let wanted) = step {
            action = wanted
            step = session.performed(.done)
        }
        switch step {
        case .reply(let reply):
            #expect(opening.awaitsReply)
            let bytes = reply.bytes
            let count = try opening.payloadBytes(bytes.span.extracting(..<12))
            #expect(count == bytes.count - 12)
            try opening.answered(bytes.span.extracting(12...))
        case .proceed:
            #expect(!opening.awaitsReply)
            opening.sent()
        default: Issue.record("\(step)")
        }
        return action
    }

    @Test("to a back-end, and knows the disk then", arguments: [false, true])
    func opens(isReadOnly: Bool) throws {
        let disk = BlockDescription(
            sizeBytes: 3 << 20, blockBytes: 4096, physicalBlockBytes: 4096, optimalBytes: 65536,
            isReadOnly: isReadOnly, queueCount: 1, identity: "a disk")
        var session = BackEndSession(disk)
        var opening = FrontEndOpening(memoryBytes: Self.memoryBytes)
        var actions: [SessionAction] = []
        while opening.message != nil {
            if let action = try Self.step(&opening, &session) { actions.append(action) }
        }
        #expect(opening.sizeBytes == 3 << 20 && opening.blockBytes == 4096)
        #expect(opening.isReadOnly == isReadOnly)
        #expect(session.startedQueues == [0])
        let regions = actions.compactMap {
            if case .changeMemory(let added, _) = $0 { added.map(\.region) } else { nil }
        }
        #expect(regions.map(\.count) == [1])
        #expect(regions[0][0].byteCount == Self.memoryBytes)
        #expect(regions[0][0].guestAddress == FrontEndOpening.memoryAddress)
        let setups = actions.compactMap {
            if case .changeQueue(_, .start(let setup)) = $0 { setup } else { nil }
        }
        let start = FrontEndOpening.memoryAddress
        #expect(setups.count == 1 && setups[0].size == 512 && setups[0].hasEventIndex)
        #expect(setups[0].rings.descriptors == start + SlotQueueLayout.descriptors)
        #expect(setups[0].rings.available == start + SlotQueueLayout.available)
        #expect(setups[0].rings.used == start + SlotQueueLayout.used)
    }

    /// A reply, and what is wrong with it.
    struct Wrong: Sendable, CustomStringConvertible {
        let description: String
        /// How many messages are answered rightly before.
        let after: Int
        var request: UInt32?
        var flags: UInt32 = 5
        var payload: [UInt8] = []
        var announced: UInt32?
        let words: String
    }

    private static func word(_ value: UInt64) -> [UInt8] { little(value) }

    private static let wrong: [Wrong] = [
        Wrong(
            description: "another request", after: 0, request: 2, payload: word(0),
            words: "answers request 2, GET_FEATURES"),
        Wrong(description: "no reply", after: 0, flags: 1, payload: word(0), words: "flags 0x1"),
        Wrong(description: "a version", after: 0, flags: 6, payload: word(0), words: "flags 0x6"),
        Wrong(description: "too long", after: 0, announced: 1 << 30, words: "1073741824 bytes"),
        Wrong(description: "too short", after: 0, payload: [1], words: "with 1 bytes"),
        Wrong(
            description: "no event index", after: 0, payload: word(1 << 32 | 1 << 30),
            words: "0x20000000"),
        Wrong(description: "no acknowledgements", after: 1, payload: word(1 << 9), words: "0x8"),
        Wrong(description: "refused", after: 3, payload: word(1), words: "SET_OWNER with 1"),
        Wrong(
            description: "no configuration", after: 4, payload: [UInt8](repeating: 0, count: 12),
            words: "GET_CONFIG with 12 bytes"),
        Wrong(
            description: "a huge disk", after: 4,
            payload: [UInt8](repeating: 0, count: 12) + word(.max)
                + [UInt8](repeating: 0, count: 52), words: "18446744073709551615 sectors"),
        Wrong(
            description: "odd blocks", after: 4,
            payload: [UInt8](repeating: 0, count: 12 + 20) + [1, 2, 0, 0]
                + [UInt8](repeating: 0, count: 36), words: "513 bytes"),
    ]

    @Test("and believes no reply that is wrong", arguments: wrong)
    func refuses(wrong: Wrong) throws {
        let disk = BlockDescription(
            sizeBytes: 3 << 20, blockBytes: 512, physicalBlockBytes: 4096, optimalBytes: 65536,
            queueCount: 1, identity: "a disk")
        var session = BackEndSession(disk)
        var opening = FrontEndOpening(memoryBytes: Self.memoryBytes)
        for _ in 0..<wrong.after { _ = try Self.step(&opening, &session) }
        let message = try #require(opening.message).bytes
        let asked = try MessageHeader(message.span).request
        let header =
            little(wrong.request ?? asked) + little(wrong.flags)
            + little(wrong.announced ?? UInt32(wrong.payload.count))
        do throws(FrontEndFault) {
            _ = try opening.payloadBytes(header.span)
            try opening.answered(wrong.payload.span)
            Issue.record("believed")
        } catch {
            #expect(error.text.contains(wrong.words), "\(error.text)")
        }
    }
}
