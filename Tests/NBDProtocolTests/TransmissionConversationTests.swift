import NBDProtocol
import Testing
import WireClient

/// The test client and the pure server, joined without sockets.
struct ClientSession {
    var server = PureServer()
    private(set) var client: WireTransmission
    private var heard = 0

    /// What the client sends up to the first request.
    static func handshakeBytes(_ mode: WireMode, contexts: [String]) -> [UInt8] {
        var handshake = WireHandshake(
            export: "vda", mode: mode, contexts: mode == .simple ? [] : contexts)
        // The greeting makes the client speak.
        return (try? handshake.receive(Handshake.greeting).send) ?? []
    }

    init(_ mode: WireMode, contexts: [String] = PureServer.contexts) throws {
        var handshake = WireHandshake(
            export: "vda", mode: mode, contexts: mode == .simple ? [] : contexts)
        let first = try handshake.receive(server.outcome.output)
        let spoken = server.outcome.output.count
        server.receive(first.send)
        let answer = Array(server.outcome.output.dropFirst(spoken))
        guard let agreement = try handshake.receive(answer).agreement else {
            throw WireViolation("the handshake did not end")
        }
        client = WireTransmission(agreement, received: handshake.rest)
        heard = server.outcome.output.count
    }

    /// Sends requests at once and returns their answers by cookie.
    mutating func ask(_ requests: [WireRequest]) throws -> [UInt64: WireReply] {
        for request in requests { server.receive(client.send(request)) }
        client.receive(Array(server.outcome.output.dropFirst(heard)))
        heard = server.outcome.output.count
        var replies: [UInt64: WireReply] = [:]
        while let reply = try client.next() { replies[reply.cookie] = reply }
        return replies
    }

    mutating func ask(_ request: WireRequest) throws -> WireReply {
        try #require(try ask([request])[request.cookie])
    }
}

/// A canned transmission: requests, and what a client hears, byte by byte in each mode.
private struct CannedTransmission: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let requests: @Sendable (WireMode) -> [WireRequest]
    let end: PureServer.End

    init(
        _ name: String, end: PureServer.End = .open,
        _ requests: @escaping @Sendable (WireMode) -> [WireRequest]
    ) {
        testDescription = name
        self.requests = requests
        self.end = end
    }

    static let all: [CannedTransmission] = [
        CannedTransmission("reads, a write between them, and a flush") { mode in
            [
                WireRequest(WireCommand.read, cookie: 1, offset: 3, length: 10),
                .write([9, 8, 7], at: 4, flags: WireFlag.fua, cookie: 2, mode: mode),
                WireRequest(WireCommand.read, cookie: 3, offset: 0, length: 64),
                WireRequest(WireCommand.flush, cookie: 4),
            ]
        },
        CannedTransmission("requests of nothing") { mode in
            [
                WireRequest(WireCommand.read, cookie: 1, offset: 5),
                .write([], at: 5, cookie: 2, mode: mode),
                WireRequest(WireCommand.trim, cookie: 3, offset: 5),
                WireRequest(WireCommand.writeZeroes, cookie: 4, offset: 5),
                WireRequest(WireCommand.cache, cookie: 5, offset: 5),
                WireRequest(WireCommand.blockStatus, cookie: 6, offset: 5),
            ]
        },
        CannedTransmission("refusals, payloads skipped, and the next request understood") { mode in
            [
                WireRequest(99, cookie: 1, offset: 1, length: 2),
                .write([1, 2, 3, 4], at: .max - 1, cookie: 2, mode: mode),
                .write([5, 6, 7], at: 0, flags: WireFlag.df, cookie: 3, mode: mode),
                WireRequest(WireCommand.read, cookie: 4, offset: .max, length: 1),
                WireRequest(
                    WireCommand.flush, cookie: 5, offset: 0x0102_0304_0506_0708, length: 9),
            ]
        },
        CannedTransmission("block status of every context") { _ in
            [
                WireRequest(WireCommand.blockStatus, cookie: 1, offset: 0, length: 1 << 20),
                WireRequest(
                    WireCommand.blockStatus, flags: WireFlag.reqOne, cookie: 2, offset: 77,
                    length: 1 << 20),
            ]
        },
        CannedTransmission("a client that leaves, and what it said afterwards", end: .finished) {
            mode in
            [
                WireRequest(WireCommand.flush, cookie: 1),
                WireRequest(WireCommand.disconnect, cookie: 2),
                .write([1], at: 0, cookie: 3, mode: mode),
            ]
        },
        CannedTransmission("a payload too long to skip", end: .hungUp) { mode in
            [
                WireRequest(
                    WireCommand.write, flags: mode == .extended ? WireFlag.payloadLength : 0,
                    cookie: 1, length: 128 << 20 | 1, payload: [1, 2, 3])
            ]
        },
    ]

    /// Conversations that only extended headers can have.
    static let extended: [CannedTransmission] = [
        CannedTransmission("stray payloads are skipped") { _ in
            (0..<9).filter { ![1, 2, 7].contains($0) }.map { command in
                WireRequest(
                    command, flags: WireFlag.payloadLength, cookie: UInt64(command) + 1, length: 5,
                    payload: [1, 2, 3, 4, 5])
            } + [WireRequest(WireCommand.flush, cookie: 77)]
        },
        CannedTransmission("lengths of more than 32 bits") { _ in
            [
                WireRequest(WireCommand.trim, cookie: 1, offset: 4096, length: 5 << 30),
                WireRequest(WireCommand.writeZeroes, cookie: 2, offset: 4096, length: 1 << 43),
                WireRequest(WireCommand.cache, cookie: 3, offset: 1, length: 1 << 40),
                WireRequest(WireCommand.blockStatus, cookie: 4, offset: 0, length: 1 << 44),
                WireRequest(WireCommand.read, cookie: 5, offset: 0, length: 5 << 30),
            ]
        },
        CannedTransmission("status of named contexts, well and badly") { _ in
            [
                .status(of: [1], offset: 4096, effect: 1 << 40, cookie: 1),
                .status(of: [2, 0], offset: 0, effect: 1 << 44, cookie: 2),
                .status(of: [1, 1], offset: 0, effect: 4096, cookie: 3),
                .status(of: [3], offset: 0, effect: 4096, cookie: 4),
                .status(of: [0], offset: 0, effect: 0, cookie: 5),
                .status(of: [], offset: 0, effect: 4096, cookie: 6),
                WireRequest(
                    WireCommand.blockStatus, flags: WireFlag.payloadLength, cookie: 7, length: 11,
                    payload: [UInt8](repeating: 0, count: 11)),
                WireRequest(WireCommand.flush, cookie: 8),
            ]
        },
        CannedTransmission("a write without its flag, as qemu sends it") { _ in
            [
                WireRequest(WireCommand.write, cookie: 1, length: 3, payload: [1, 2, 3]),
                WireRequest(WireCommand.read, cookie: 2, length: 4),
            ]
        },
        CannedTransmission("a compact header among extended ones", end: .outOfStep) { _ in
            [WireRequest(WireCommand.flush, cookie: 1)]
        },
    ]

    func stream(_ mode: WireMode) -> [UInt8] {
        var stream = ClientSession.handshakeBytes(mode, contexts: PureServer.contexts)
        for request in requests(mode) { stream += request.bytes(mode) }
        if end == .outOfStep { stream += WireRequest(WireCommand.flush).bytes(.structured) }
        return stream
    }
}

@Suite("Transmission conversations")
struct TransmissionConversationTests {
    @Test(
        "no split of a conversation changes what the client hears",
        arguments: CannedTransmission.all, WireMode.allCases)
    fileprivate func splits(_ canned: CannedTransmission, mode: WireMode) {
        expectSplitsAgree(canned, mode)
    }

    @Test(
        "no split of an extended conversation changes what the client hears",
        arguments: CannedTransmission.extended)
    fileprivate func extendedSplits(_ canned: CannedTransmission) {
        expectSplitsAgree(canned, .extended)
    }

    private func expectSplitsAgree(_ canned: CannedTransmission, _ mode: WireMode) {
        let stream = canned.stream(mode)
        var whole = PureServer()
        whole.receive(stream)
        #expect(whole.outcome.end == canned.end)
        for cut in 0...stream.count {
            var server = PureServer()
            server.receive(stream[..<cut])
            server.receive(stream[cut...])
            if server.outcome != whole.outcome {
                Issue.record("cut at \(cut) differs")
                return
            }
        }
        var byteByByte = PureServer()
        for byte in stream { byteByByte.receive(CollectionOfOne(byte)) }
        #expect(byteByByte.outcome == whole.outcome)
    }

    @Test("a strict client finds every reply in order", arguments: WireMode.allCases)
    func strictClient(mode: WireMode) throws {
        for canned in CannedTransmission.all
            + (mode == .extended ? CannedTransmission.extended : [])
        where canned.end == .open {
            var session = try ClientSession(mode)
            let requests = canned.requests(mode)
            let replies = try session.ask(requests)
            #expect(replies.count == requests.count, "\(canned)")
            #expect(session.client.pendingCount == 0)
        }
    }

    @Test("one read, one error and one success, byte by byte", arguments: WireMode.allCases)
    func exactBytes(mode: WireMode) throws {
        var session = try ClientSession(mode)
        let before = session.server.outcome.output.count
        for request in [
            WireRequest(WireCommand.read, flags: 0, cookie: 0xaa, offset: 2, length: 4),
            WireRequest(WireCommand.read, cookie: 0xbb, offset: 1 << 50, length: 4),
            WireRequest(WireCommand.flush, cookie: 0xcc, offset: 0, length: 0),
        ] { session.server.receive(request.bytes(mode)) }
        let text = "the range reaches past the end of the export"
        let error = bytes.u32(22).u16(UInt16(text.utf8.count)).text(text)
        let expected =
            switch mode {
            case .simple:
                bytes.u32(0x6744_6698).u32(0).u64(0xaa).raw([2, 3, 4, 5])
                    .u32(0x6744_6698).u32(22).u64(0xbb).u32(0x6744_6698).u32(0).u64(0xcc)
            case .structured:
                bytes.u32(0x668e_33ef).u16(0).u16(1).u64(0xaa).u32(10).u64(2).raw([2, 3])
                    .u32(0x668e_33ef).u16(1).u16(1).u64(0xaa).u32(10).u64(4).raw([4, 5])
                    .u32(0x668e_33ef).u16(1).u16(0x8001).u64(0xbb)
                    .u32(UInt32(error.bytes.count)).then(error)
                    .u32(0x6744_6698).u32(0).u64(0xcc)
            case .extended:
                bytes.u32(0x6e8a_278c).u16(0).u16(1).u64(0xaa).u64(2).u64(10).u64(2).raw([2, 3])
                    .u32(0x6e8a_278c).u16(1).u16(1).u64(0xaa).u64(2).u64(10).u64(4).raw([4, 5])
                    .u32(0x6e8a_278c).u16(1).u16(0x8001).u64(0xbb).u64(1 << 50)
                    .u64(UInt64(error.bytes.count)).then(error)
                    .u32(0x6e8a_278c).u16(1).u16(0).u64(0xcc).u64(0).u64(0)
            }
        #expect(Array(session.server.outcome.output.dropFirst(before)) == expected.bytes)
    }

    @Test("an extended flush is answered with the offset it came with")
    func flushOffset() throws {
        var session = try ClientSession(.extended)
        // The client throws when the offset is not repeated.
        let reply = try session.ask(
            WireRequest(WireCommand.flush, cookie: 1, offset: .max, length: .max))
        #expect(reply.error == 0)
    }

    @Test("long extents arrive whole with extended headers, and cut without")
    func longExtents() throws {
        let length: UInt64 = 1 << 44
        var extended = try ClientSession(.extended)
        let long = try extended.ask(WireRequest(WireCommand.blockStatus, length: length))
        #expect(long.extents.count == 3)
        for id in UInt32(0)..<3 {
            let first = UInt64(id + 1) << 16
            #expect(
                long.extents[id] == [
                    WireExtent(first, 0), WireExtent(length - first, UInt64(id + 1)),
                ])
        }
        var structured = try ClientSession(.structured)
        let short = try structured.ask(
            WireRequest(WireCommand.blockStatus, length: 0xffff_ffff))
        #expect(short.extents[0]?.last?.length == 1 << 31 - 1 << 16)
    }

    @Test("a status request is answered for the contexts it names, and no other")
    func namedContexts() throws {
        var session = try ClientSession(.extended)
        #expect(session.client.agreement.flags & WireExportFlag.blockStatusPayload != 0)
        for ids: [UInt32] in [[0], [1], [2], [2, 0], [1, 2, 0]] {
            let reply = try session.ask(.status(of: ids, offset: 7, effect: 1 << 40))
            #expect(Set(reply.extents.keys) == Set(ids))
        }
        // Selected, but the export has three of which this client selected one.
        var narrow = try ClientSession(.extended, contexts: [PureServer.contexts[1]])
        #expect(narrow.client.agreement.contexts.map(\.id) == [1])
        #expect(try narrow.ask(.status(of: [1], offset: 0, effect: 1)).error == 0)
        #expect(try narrow.ask(.status(of: [0], offset: 0, effect: 1)).error == 22)
        #expect(try narrow.ask(.status(of: [2], offset: 0, effect: 1)).error == 22)
    }

    @Test("without contexts no status request is answered, named or not")
    func noContexts() throws {
        var session = try ClientSession(.extended, contexts: [])
        #expect(session.client.agreement.flags & WireExportFlag.blockStatusPayload != 0)
        #expect(try session.ask(.status(of: [0], offset: 0, effect: 1)).error == 22)
        #expect(try session.ask(WireRequest(WireCommand.blockStatus, length: 1)).error == 22)
        #expect(try session.ask(WireRequest(WireCommand.flush)).error == 0)
    }

    @Test("an export with hundreds of contexts answers for as many as can be asked for")
    func manyContexts() {
        let names = (0..<300).map { "qemu:dirty-bitmap:b\($0)" }
        let directory = FixedDirectory(exports: [
            ExportDescription(name: "vda", sizeBytes: 1, flags: [], contexts: names)
        ])
        let client = Client.usualFlags.then(Client.extendedHeaders)
            .then(Client.setContexts("vda", Array(names[100...]))).then(Client.go("vda"))
        let outcome = Conversation.run(client.bytes, directory: directory)
        guard case .transmission(let negotiated) = outcome.ending else {
            Issue.record("\(outcome.ending)")
            return
        }
        // The 256th is the last that has an id.
        #expect(negotiated.contexts.map(\.id) == Array(100..<256))
        let set = ContextSet(negotiated.contexts)
        #expect(set.count == 156 && !set.contains(99) && set.contains(255) && !set.contains(256))
        #expect(set.containsAny(above: 254) && !set.containsAny(above: 255))
    }
}
