import NBDProtocol
import Testing

/// Every option in every state of the handshake.
///
/// `ack`: acknowledged, and the handshake goes on. `begins`: transmission follows. `ends`: closed,
/// as was asked for. `closes`: closed without a word. Everything else is an error reply.
enum OptionTable {
    static let table = TextTable(
        keys: 1,
        """
        option           | fresh   structured extended both    contexts listed  old    over
        EXPORT_NAME      | begins  begins     closes   closes  closes   begins  begins over
        ABORT            | ends    ends       ends     ends    ends     ends    closes over
        LIST             | ack     ack        ack      ack     ack      INVALID closes over
        4                | UNSUP   UNSUP      UNSUP    UNSUP   UNSUP    UNSUP   closes over
        STARTTLS         | UNSUP   UNSUP      UNSUP    UNSUP   UNSUP    UNSUP   closes over
        INFO             | ack     ack        ack      ack     ack      ack     closes over
        GO               | begins  begins     begins   begins  begins   begins  closes over
        STRUCTURED_REPLY | ack     INVALID    EXT      EXT     EXT      ack     closes over
        LIST_META        | ack     ack        ack      ack     ack      ack     closes over
        SET_META         | INVALID ack        ack      ack     ack      INVALID closes over
        EXTENDED_HEADERS | ack     ack        INVALID  INVALID INVALID  ack     closes over
        0                | UNSUP   UNSUP      UNSUP    UNSUP   UNSUP    UNSUP   closes over
        12               | UNSUP   UNSUP      UNSUP    UNSUP   UNSUP    UNSUP   closes over
        4294967295       | UNSUP   UNSUP      UNSUP    UNSUP   UNSUP    UNSUP   closes over
        """)

    static let codes: [String: UInt32] = [
        "EXPORT_NAME": 1, "ABORT": 2, "LIST": 3, "STARTTLS": 5, "INFO": 6, "GO": 7,
        "STRUCTURED_REPLY": 8, "LIST_META": 9, "SET_META": 10, "EXTENDED_HEADERS": 11,
    ]

    static func code(_ name: String) throws -> UInt32 {
        try #require(codes[name] ?? UInt32(name))
    }

    /// The option, well formed, about the first export.
    static func message(_ name: String) throws -> ByteBuilder {
        let code = try code(name)
        return switch name {
        case "EXPORT_NAME": Client.option(code, bytes.text("vda"))
        case "INFO", "GO": Client.option(code, Client.infoPayload("vda", []))
        case "LIST_META", "SET_META":
            Client.option(code, Client.metaPayload("vda", ["base:allocation"]))
        default: Client.option(code)
        }
    }

    /// What the client says to get into a state.
    static let states: [String: ByteBuilder] = [
        "fresh": Client.usualFlags,
        "structured": Client.usualFlags.then(Client.structuredReply),
        "extended": Client.usualFlags.then(Client.extendedHeaders),
        "both": Client.usualFlags.then(Client.structuredReply).then(Client.extendedHeaders),
        "contexts": Client.usualFlags.then(Client.extendedHeaders)
            .then(Client.setContexts("vda", ["base:allocation"])),
        "listed": Client.usualFlags.then(Client.option(3)),
        "old": bytes.u32(0),
        "over": Client.usualFlags.then(Client.go("vda")),
    ]

    static let errors: [String: UInt32] = [
        "UNSUP": 0x8000_0001, "INVALID": 0x8000_0003, "EXT": 0x8000_000a,
    ]
}

@Suite("Options in every state")
struct OptionTableTests {
    @Test("each option gets its answer in each state", arguments: OptionTable.table.cells)
    func cell(_ cell: TextTable.Cell) throws {
        let code = try OptionTable.code(cell.row[0])
        let before = try #require(OptionTable.states[cell.column])
        let option = try OptionTable.message(cell.row[0])
        let earlier = Conversation.run(before.bytes)
        let outcome = Conversation.run(before.then(option).bytes)
        let reply = Array(outcome.reply.dropFirst(earlier.reply.count))
        #expect(outcome.reply.starts(with: earlier.reply))

        switch cell.value {
        case "ack":
            #expect(outcome.ending == .open)
            #expect(reply.suffix(20) == Server.acknowledge(code).bytes[...])
        case "begins":
            guard case .transmission(let negotiated) = outcome.ending else {
                Issue.record("\(outcome.ending)")
                return
            }
            #expect(negotiated.replyMode == Self.modes[cell.column])
            #expect(!reply.isEmpty)
        case "ends":
            #expect(outcome.ending == .closed(.clientAborted))
            #expect(reply == Server.acknowledge(code).bytes)
        case "closes":
            guard case .closed(let fault) = outcome.ending else {
                Issue.record("\(outcome.ending)")
                return
            }
            #expect(fault != .clientAborted)
            #expect(reply.isEmpty)
        case "over":
            // What follows is transmission's business: the handshake takes no byte of it.
            #expect(outcome.consumed == earlier.consumed && reply.isEmpty)
        default:
            let type = try #require(OptionTable.errors[cell.value])
            let head = bytes.u64(0x0003_e889_0455_65a9).u32(code).u32(type).bytes
            #expect(outcome.ending == .open)
            #expect(reply.starts(with: head))
        }
    }

    private static let modes: [String: ReplyMode] = [
        "fresh": .simple, "structured": .structured, "extended": .extended, "both": .extended,
        "contexts": .extended, "listed": .simple, "old": .simple,
    ]

    @Test("no split changes an answer", arguments: OptionTable.table.cells)
    func splits(_ cell: TextTable.Cell) throws {
        let before = try #require(OptionTable.states[cell.column])
        Conversation.expectSplitsAgree(
            before.then(try OptionTable.message(cell.row[0])).bytes)
    }

    @Test("every option of the protocol has its row, every state its column")
    func isWhole() {
        let named = OptionTable.table.rows.map { $0[0] }
        for code in UInt32(0)...12 {
            #expect(
                named.contains("\(code)") || named.contains { OptionTable.codes[$0] == code },
                "option \(code)")
        }
        #expect(Set(OptionTable.table.columns) == Set(OptionTable.states.keys))
    }
}
