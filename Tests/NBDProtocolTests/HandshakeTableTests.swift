import NBDProtocol
import Testing

/// One malformed input and its reaction.
struct Malformed: CustomTestStringConvertible, Sendable {
    enum Reaction: Equatable, Sendable {
        /// The option is consumed and refused with this reply type; the connection stays in step.
        case refused(UInt32)
        /// The option is consumed and acknowledged.
        case acknowledged
        case closed(HandshakeFault)
    }

    let testDescription: String
    let client: [UInt8]
    /// Option code that the reply echoes.
    let code: UInt32
    let reaction: Reaction
    /// What is answered before the connection ends.
    private(set) var reply: [UInt8] = []

    /// A row whose input is one option after the usual flags and `before`.
    init(
        _ name: String, _ code: UInt32, _ payload: ByteBuilder, before: ByteBuilder = bytes,
        _ reaction: Reaction
    ) {
        testDescription = name
        client = before.then(Client.option(code, payload)).bytes
        self.code = code
        self.reaction = reaction
    }

    /// A row whose input is whatever it is.
    init(_ name: String, input: ByteBuilder, _ fault: HandshakeFault) {
        testDescription = name
        client = input.bytes
        code = 0
        reaction = .closed(fault)
    }

    /// A row whose input is EXPORT_NAME after EXTENDED_HEADERS, which is acknowledged.
    init(_ name: String, extendedInput export: String, _ fault: HandshakeFault) {
        self.init(
            name,
            input: Client.usualFlags.then(Client.extendedHeaders)
                .then(Client.option(1, bytes.text(export))), fault)
        reply = Server.acknowledge(11).bytes
    }

    static let unsupported = Reaction.refused(0x8000_0001)
    static let invalid = Reaction.refused(0x8000_0003)
    static let unknown = Reaction.refused(0x8000_0006)
    static let tooBig = Reaction.refused(0x8000_0009)
    static let extendedRequired = Reaction.refused(0x8000_000a)

    static let name4096 = String(repeating: "n", count: 4096)
    static let name4097 = String(repeating: "n", count: 4097)
    static func queries(_ count: Int) -> [String] { Array(repeating: "x:y", count: count) }

    static let options: [Malformed] = [
        Malformed("option 0", 0, bytes, unsupported),
        Malformed("PEEK_EXPORT, withdrawn", 4, bytes, unsupported),
        Malformed("unknown option with data", 77, bytes.zeros(100), unsupported),
        Malformed("highest unknown option", .max, bytes.zeros(1), unsupported),
        Malformed("unknown option longer than is looked at", 77, bytes.zeros(70_000), unsupported),
        Malformed("STARTTLS", 5, bytes, unsupported),
        Malformed("STARTTLS with data", 5, bytes.zeros(1), invalid),
        Malformed("EXTENDED_HEADERS with data", 11, bytes.zeros(1), invalid),
        Malformed("EXTENDED_HEADERS with much data", 11, bytes.zeros(70_000), invalid),
        Malformed(
            "EXTENDED_HEADERS again", 11, bytes, before: Client.extendedHeaders, invalid),
        Malformed(
            "EXTENDED_HEADERS after a refused one", 11, bytes,
            before: Client.option(11, bytes.u8(1)), .acknowledged),
        Malformed(
            "EXTENDED_HEADERS after STRUCTURED_REPLY", 11, bytes, before: Client.structuredReply,
            .acknowledged),
        Malformed(
            "STRUCTURED_REPLY after EXTENDED_HEADERS", 8, bytes, before: Client.extendedHeaders,
            extendedRequired),
        Malformed(
            "STRUCTURED_REPLY with data after EXTENDED_HEADERS", 8, bytes.u8(1),
            before: Client.extendedHeaders, invalid),
        Malformed("LIST with data", 3, bytes.zeros(1), invalid),
        Malformed("LIST with much data", 3, bytes.zeros(70_000), invalid),
        Malformed("LIST again", 3, bytes, before: Client.option(3), invalid),
        Malformed(
            "LIST after a refused LIST", 3, bytes, before: Client.option(3, bytes.u8(1)),
            .acknowledged),
        Malformed("STRUCTURED_REPLY with data", 8, bytes.zeros(1), invalid),
        Malformed("STRUCTURED_REPLY again", 8, bytes, before: Client.structuredReply, invalid),
    ]

    static func infoRows(_ code: UInt32) -> [Malformed] {
        let name = code == 6 ? "INFO" : "GO"
        func row(_ what: String, _ payload: ByteBuilder, _ reaction: Reaction) -> Malformed {
            Malformed("\(name) \(what)", code, payload, reaction)
        }
        return [
            row("with an unknown name", bytes.counted("nosuch").u16(0), unknown),
            row("with the empty name", bytes.counted("").u16(0), unknown),
            row("with a part of a name", bytes.counted("vd").u16(0), unknown),
            row("without data", bytes, invalid),
            row("with half a length", bytes.u16(0), invalid),
            row("with a length only", bytes.u32(0), invalid),
            row("with a name over half the count", bytes.u32(4).text("vda").u16(0), invalid),
            row("with a name up to the end", bytes.u32(5).text("vda").u16(0), invalid),
            row("with a name beyond the end", bytes.u32(6).text("vda").u16(0), invalid),
            row("with name length 0xffffffff", bytes.u32(.max).text("vda").u16(0), invalid),
            row("with name length 0x80000000", bytes.u32(1 << 31).text("vda").u16(0), invalid),
            row("with a name of 4096 bytes", bytes.counted(name4096).u16(0), unknown),
            row("with a name of 4097 bytes", bytes.counted(name4097).u16(0), invalid),
            row("with NUL in the name", bytes.counted("vd\u{0}").u16(0), invalid),
            row("with a NUL after the name", bytes.counted("vda\u{0}").u16(0), invalid),
            row("with a name not UTF-8", bytes.u32(2).raw([0xc3, 0x28]).u16(0), invalid),
            row("with a surrogate", bytes.u32(3).raw([0xed, 0xa0, 0x80]).u16(0), invalid),
            row("with fewer infos than announced", bytes.counted("vda").u16(2).u16(0), invalid),
            row("with 65535 infos announced", bytes.counted("vda").u16(65535), invalid),
            row("with trailing bytes", bytes.counted("vda").u16(0).u8(0), invalid),
            row("with half an info", bytes.counted("vda").u16(1).u8(0), invalid),
            row("of 65536 bytes, trailing", bytes.counted("vda").u16(0).zeros(65_527), invalid),
            row("of 65537 bytes", bytes.counted("vda").u16(0).zeros(65_528), tooBig),
        ]
    }

    static func metaRows(_ code: UInt32) -> [Malformed] {
        let name = code == 9 ? "LIST_META_CONTEXT" : "SET_META_CONTEXT"
        func row(_ what: String, _ payload: ByteBuilder, _ reaction: Reaction) -> Malformed {
            Malformed("\(name) \(what)", code, payload, before: Client.structuredReply, reaction)
        }
        let vda = bytes.counted("vda")
        return [
            row("of an unknown export", Client.metaPayload("nosuch", []), unknown),
            row("without data", bytes, invalid),
            row("without a count", vda, invalid),
            row("with name length 0xffffffff", bytes.u32(.max).text("vda").u32(0), invalid),
            row("with a name of 4096 bytes", Client.metaPayload(name4096, []), unknown),
            row("with a name of 4097 bytes", Client.metaPayload(name4097, []), invalid),
            row("with a name not UTF-8", bytes.u32(1).u8(0xff).u32(0), invalid),
            row("with a missing query", vda.u32(1), invalid),
            row("with 0xffffffff queries", vda.u32(.max), invalid),
            row("with an empty query", Client.metaPayload("vda", [""]), .acknowledged),
            row("without a colon", Client.metaPayload("vda", ["base"]), .acknowledged),
            row("of unknown namespaces", Client.metaPayload("vda", ["x:y", ":"]), .acknowledged),
            row("with a query of 4096", Client.metaPayload("vda", [name4096]), .acknowledged),
            row("with a query of 4097", Client.metaPayload("vda", [name4097]), invalid),
            row("with NUL in a query", Client.metaPayload("vda", ["base:\u{0}"]), invalid),
            row("with a query not UTF-8", vda.u32(1).u32(1).u8(0x80), invalid),
            row("with a query beyond the end", vda.u32(1).u32(5).text("x:y"), invalid),
            row("with query length 0xffffffff", vda.u32(1).u32(.max).text("x:y"), invalid),
            row("with a second query missing", vda.u32(2).counted("x:y"), invalid),
            row("with trailing bytes", Client.metaPayload("vda", ["x:y"]).u8(0), invalid),
            row("with 256 queries", Client.metaPayload("vda", queries(256)), .acknowledged),
            row("with 257 queries", Client.metaPayload("vda", queries(257)), tooBig),
            row("of more than 65536 bytes", Client.metaPayload("vda", queries(9500)), tooBig),
        ]
    }

    static let metaState: [Malformed] = [
        Malformed(
            "SET_META_CONTEXT without structured replies", 10,
            Client.metaPayload("vda", []), invalid),
        Malformed(
            "LIST_META_CONTEXT without structured replies", 9,
            Client.metaPayload("vda", ["x:y"]), .acknowledged),
        Malformed(
            "SET_META_CONTEXT with extended headers only", 10,
            Client.metaPayload("vda", ["base:allocation"]), before: Client.extendedHeaders,
            .acknowledged),
        Malformed(
            "SET_META_CONTEXT after refused EXTENDED_HEADERS", 10,
            Client.metaPayload("vda", []), before: Client.option(11, bytes.u8(1)), invalid),
    ]

    static let closing: [Malformed] = [
        Malformed("unknown client flag", input: bytes.u32(7), .unknownClientFlags(7)),
        Malformed("every client flag", input: bytes.u32(.max), .unknownClientFlags(.max)),
        Malformed("bad option magic", input: Client.usualFlags.u64(1), .badOptionMagic(1)),
        Malformed(
            "bad option magic with more after it",
            input: Client.usualFlags.text("GET / HT").zeros(40),
            .badOptionMagic(0x4745_5420_2f20_4854)),
        Malformed(
            "a 4 GiB option",
            input: Client.usualFlags.then(
                Client.option(77, length: .max, bytes)),
            .optionTooLong(code: 77, byteCount: .max)),
        Malformed(
            "an option just over the limit",
            input: Client.usualFlags.then(
                Client.option(7, length: 33_554_433, bytes)),
            .optionTooLong(code: 7, byteCount: 33_554_433)),
        Malformed(
            "GO without fixed newstyle", input: bytes.u32(2).then(Client.go("vda")),
            .optionNeedsFixedNewstyle(code: 7)),
        Malformed(
            "an unknown option without fixed newstyle",
            input: bytes.u32(0).then(
                Client.option(77)), .optionNeedsFixedNewstyle(code: 77)),
        Malformed(
            "EXPORT_NAME of an unknown export",
            input: Client.usualFlags.then(
                Client.option(1, bytes.text("nosuch"))), .unknownExport),
        Malformed(
            "EXPORT_NAME of the default export", input: Client.usualFlags.then(Client.option(1)),
            .unknownExport),
        Malformed(
            "EXPORT_NAME that begins an extended connection", extendedInput: "vda",
            .exportNameAfterExtendedHeaders),
        Malformed(
            "EXPORT_NAME of an unknown export after EXTENDED_HEADERS", extendedInput: "nosuch",
            .exportNameAfterExtendedHeaders),
        Malformed(
            "EXPORT_NAME of 4096 bytes",
            input: Client.usualFlags.then(
                Client.option(1, bytes.text(name4096))), .unknownExport),
        Malformed(
            "EXPORT_NAME of 4097 bytes",
            input: Client.usualFlags.then(
                Client.option(1, bytes.text(name4097))), .invalidExportName),
        Malformed(
            "EXPORT_NAME with NUL",
            input: Client.usualFlags.then(
                Client.option(1, bytes.text("vda\u{0}"))), .invalidExportName),
        Malformed(
            "EXPORT_NAME not UTF-8",
            input: Client.usualFlags.then(
                Client.option(1, bytes.u8(0xff))), .invalidExportName),
    ]

    static let inStep =
        options + infoRows(6) + infoRows(7) + metaRows(9) + metaRows(10)
        + metaState
}

@Suite("Malformed handshakes")
struct HandshakeTableTests {
    @Test(
        "an option is consumed, answered, and the next one understood", arguments: Malformed.inStep)
    func inStep(_ row: Malformed) throws {
        let client = Client.usualFlags.raw(row.client)
        let outcome = Conversation.run(client.bytes)
        #expect(outcome.ending == .open)
        #expect(outcome.consumed == client.bytes.count)
        let last = try #require(lastReply(outcome.reply))
        #expect(last.code == row.code)
        switch row.reaction {
        case .refused(let type):
            #expect(last.type == type)
            #expect(last.textBytes > 0 && last.textBytes < 100)
        case .acknowledged:
            #expect(last.type == 1)
        case .closed:
            Issue.record("row belongs elsewhere")
        }
        // Still in step: ABORT is understood.
        let aborted = Conversation.run(client.then(Client.option(2)).bytes)
        #expect(aborted.ending == .closed(.clientAborted))
        #expect(aborted.reply == outcome.reply + Server.acknowledge(2).bytes)
    }

    @Test("the connection ends without a reply of its own", arguments: Malformed.closing)
    func closing(_ row: Malformed) {
        let outcome = Conversation.run(row.client)
        guard case .closed(let fault) = row.reaction else { return }
        #expect(outcome.ending == .closed(fault))
        #expect(outcome.reply == row.reply)
        #expect(!fault.text.isEmpty)
    }

    @Test(
        "no split changes the reaction",
        arguments: (Malformed.inStep + Malformed.closing).filter { $0.client.count < 600 })
    func splits(_ row: Malformed) {
        Conversation.expectSplitsAgree(
            row.code == 0 ? row.client : Client.usualFlags.raw(row.client).bytes)
    }

    @Test("an option up to 32 MiB is consumed without being kept")
    func longSkip() {
        var conversation = Conversation()
        conversation.receive(Client.usualFlags.bytes)
        conversation.receive(Client.option(77, length: 33_554_432, bytes).bytes)
        let piece = [UInt8](repeating: 0xa5, count: 1 << 20)
        for _ in 0..<32 {
            #expect(conversation.outcome.reply.isEmpty)
            conversation.receive(piece)
        }
        #expect(lastReply(conversation.outcome.reply)?.type == 0x8000_0001)
        #expect(conversation.outcome.consumed == 4 + 16 + 33_554_432)
    }

    @Test(
        "a failed SET_META_CONTEXT leaves no contexts",
        arguments: [
            Client.setContexts("nosuch", ["base:allocation"]), Client.option(10, bytes),
            Client.option(10, bytes.zeros(70_000)),
        ])
    func failedSet(_ failing: ByteBuilder) {
        let client = Client.usualFlags.then(Client.structuredReply)
            .then(Client.setContexts("vda", ["base:allocation"])).then(failing)
            .then(Client.go("vda"))
        #expect(Conversation.run(client.bytes).ending == Canned.structured([]))
    }

    @Test("a failed GO leaves the handshake going, contexts included")
    func failedGo() {
        let client = Client.usualFlags.then(Client.structuredReply)
            .then(Client.setContexts("vda", ["base:allocation"])).then(Client.go("nosuch"))
            .then(Client.go("vda"))
        #expect(Conversation.run(client.bytes).ending == Canned.structured([Canned.allocation]))
    }

    @Test("refusals do not repeat what the peer sent")
    func noEcho() {
        let outcome = Conversation.run(
            Client.usualFlags.then(Client.go("SECRET\u{1b}[2J")).bytes)
        #expect(!String(decoding: outcome.reply, as: UTF8.self).contains("SECRET"))
    }

    @Test("the 33rd option ends the connection")
    func optionFlood() {
        var client = Client.usualFlags
        for _ in 0..<32 { client = client.then(Client.option(77)) }
        #expect(Conversation.run(client.bytes).ending == .open)
        client = client.then(Client.go("vda"))
        #expect(Conversation.run(client.bytes).ending == .closed(.tooManyOptions(limit: 32)))
    }

    @Test("a client that lists may ask about every export")
    func optionFloodAfterList() {
        var client = Client.usualFlags.then(Client.option(3))
        for _ in 0..<95 { client = client.then(Client.info("vda")) }
        #expect(Conversation.run(client.bytes).ending == .open)
        client = client.then(Client.info("vda"))
        #expect(Conversation.run(client.bytes).ending == .closed(.tooManyOptions(limit: 96)))
    }

    @Test("the option limit stays bounded however many exports there are")
    func optionLimitBound() {
        let many = FixedDirectory(
            exports: (0..<1000).map {
                ExportDescription(name: "disk\($0)", sizeBytes: 1, flags: [])
            })
        var stream = Client.usualFlags.then(Client.option(3)).bytes
        let unknown = Client.option(77).bytes
        for _ in 0..<8192 { stream += unknown }
        var handshake = Handshake()
        var reply: [UInt8] = []
        var offset = 0
        while true {
            let step = handshake.advance(
                stream.span.extracting(offset..<stream.count), directory: many, reply: &reply)
            guard case .progressed(let consumed) = step else {
                #expect(step == .close(consumed: 16, .tooManyOptions(limit: 8192)))
                return
            }
            offset += consumed
        }
    }

    /// Code, type and data size of the last whole reply in `stream`.
    private func lastReply(_ stream: [UInt8]) -> (code: UInt32, type: UInt32, textBytes: Int)? {
        var rest = stream[...]
        var last: (code: UInt32, type: UInt32, textBytes: Int)?
        while rest.count >= 20 {
            let header = Array(rest.prefix(20))
            func word(_ at: Int) -> UInt32 {
                header[at..<(at + 4)].reduce(0) { $0 << 8 | UInt32($1) }
            }
            let size = Int(word(16))
            last = (word(8), word(12), size)
            rest = rest.dropFirst(20 + size)
        }
        return rest.isEmpty ? last : nil
    }
}
