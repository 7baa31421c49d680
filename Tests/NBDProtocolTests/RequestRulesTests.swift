import NBDProtocol
import Testing

/// One request against one export, and what becomes of it.
struct RuleRow: CustomTestStringConvertible, Sendable {
    enum Expected: Sendable { case accepted, refused(WireError), disconnected, finished }

    enum Export: Sendable {
        /// Everything offered, structured replies, a context.
        case full
        /// Read-only, otherwise the same.
        case readOnly
        /// Nothing offered, simple replies.
        case bare
    }

    let export: Export
    let command: UInt16
    let flags: UInt16
    let offset: UInt64
    let length: UInt64
    let expected: Expected

    var testDescription: String {
        "\(export) command \(command) flags \(flags) \(offset)+\(length): \(expected)"
    }

    init(
        _ export: Export, _ command: Command, flags: UInt16 = 0, _ offset: UInt64,
        _ length: UInt64, _ expected: Expected
    ) {
        self.init(
            export, number: command.rawValue, flags: flags, offset, length, expected)
    }

    init(
        _ export: Export, number: UInt16, flags: UInt16 = 0, _ offset: UInt64, _ length: UInt64,
        _ expected: Expected
    ) {
        self.export = export
        command = number
        self.flags = flags
        self.offset = offset
        self.length = length
        self.expected = expected
    }

    static let size: UInt64 = 1 << 30
    static let mebibyte: UInt64 = 1 << 20
    static let ranged: [Command] = [.read, .write, .trim, .cache, .writeZeroes, .blockStatus]

    static let bounds: [RuleRow] = ranged.flatMap { command in
        let error: WireError =
            command == .write || command == .writeZeroes ? .noSpace : .invalidArgument
        // With no context and no length a status request means nothing.
        let empty: Expected =
            command == .blockStatus ? .refused(.invalidArgument) : .accepted
        return [
            RuleRow(.full, command, 0, 1, .accepted),
            RuleRow(.full, command, size - 1, 1, .accepted),
            RuleRow(.full, command, size - 4096, 4096, .accepted),
            RuleRow(.full, command, 3, 4097, .accepted),
            RuleRow(.full, command, 0, 0, empty),
            RuleRow(.full, command, size, 0, empty),
            RuleRow(.full, command, size + 1, 0, .refused(error)),
            RuleRow(.full, command, size, 1, .refused(error)),
            RuleRow(.full, command, size - 1, 2, .refused(error)),
            RuleRow(.full, command, .max, 1, .refused(error)),
            RuleRow(.full, command, .max - 4095, 4096, .refused(error)),
            RuleRow(.full, command, 1 << 63, 4096, .refused(error)),
        ]
    }

    static let flagRows: [RuleRow] = (UInt16(0)..<8).flatMap { number -> [RuleRow] in
        guard let command = Command(rawValue: number), command != .disconnect else { return [] }
        let known: UInt16 =
            switch command {
            case .read: 0b00_0101
            case .writeZeroes: 0b01_0011
            case .blockStatus: 0b00_1001
            case .write, .flush, .trim, .cache, .disconnect: 0b00_0001
            }
        return (0..<16).map { bit in
            let flag = UInt16(1) << bit
            return RuleRow(
                .full, command, flags: flag, 0, 4096,
                known & flag != 0 ? .accepted : .refused(.invalidArgument))
        }
    }

    static let offers: [RuleRow] = [
        RuleRow(.readOnly, .read, 0, 1, .accepted),
        RuleRow(.readOnly, .write, 0, 1, .refused(.notPermitted)),
        RuleRow(.readOnly, .write, size, 1, .refused(.notPermitted)),
        RuleRow(.readOnly, .trim, 0, 1, .refused(.notPermitted)),
        RuleRow(.readOnly, .writeZeroes, 0, 1, .refused(.notPermitted)),
        RuleRow(.readOnly, .flush, 0, 0, .accepted),
        RuleRow(.readOnly, .cache, 0, 1, .accepted),
        RuleRow(.readOnly, .blockStatus, 0, 1, .accepted),
        RuleRow(.bare, .read, 0, 1, .accepted),
        RuleRow(.bare, .write, 0, 1, .accepted),
        RuleRow(.bare, .flush, 0, 0, .refused(.invalidArgument)),
        RuleRow(.bare, .trim, 0, 1, .refused(.invalidArgument)),
        RuleRow(.bare, .writeZeroes, 0, 1, .refused(.invalidArgument)),
        RuleRow(.bare, .cache, 0, 1, .accepted),
        RuleRow(.bare, .blockStatus, 0, 1, .refused(.invalidArgument)),
        RuleRow(.bare, .read, flags: 1, 0, 1, .refused(.invalidArgument)),
        RuleRow(.bare, .write, flags: 1, 0, 1, .refused(.invalidArgument)),
        RuleRow(.bare, .read, flags: 4, 0, 1, .refused(.invalidArgument)),
        RuleRow(.full, .flush, 7, 9, .accepted),
        RuleRow(.full, .flush, .max, .max, .accepted),
        RuleRow(.full, number: 8, 0, 0, .refused(.invalidArgument)),
        RuleRow(.full, number: .max, flags: .max, .max, .max, .refused(.invalidArgument)),
        RuleRow(.full, .disconnect, 0, 0, .finished),
        RuleRow(.full, .disconnect, flags: .max, .max, .max, .finished),
    ]

    static let lengths: [RuleRow] = [
        RuleRow(.full, .read, 0, 64 * mebibyte, .accepted),
        RuleRow(.full, .read, 0, 64 * mebibyte + 1, .refused(.invalidArgument)),
        RuleRow(.full, .read, 0, .max, .refused(.invalidArgument)),
        RuleRow(.full, .write, 0, 64 * mebibyte, .accepted),
        RuleRow(.full, .write, 0, 64 * mebibyte + 1, .refused(.invalidArgument)),
        RuleRow(.full, .write, 0, 128 * mebibyte, .refused(.invalidArgument)),
        RuleRow(.full, .write, 0, 128 * mebibyte + 1, .disconnected),
        RuleRow(.readOnly, .write, 0, 128 * mebibyte + 1, .disconnected),
        RuleRow(.full, .write, 0, .max, .disconnected),
        RuleRow(.full, .trim, 0, size, .accepted),
        RuleRow(.full, .cache, 0, size, .accepted),
        RuleRow(.full, .writeZeroes, 0, size, .accepted),
        RuleRow(.full, .blockStatus, 0, size, .accepted),
    ]

    var rules: RequestRules {
        let offered: TransmissionFlags = [
            .hasFlags, .sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero, .sendDF,
            .sendCache,
        ]
        let flags: TransmissionFlags =
            switch export {
            case .full: offered
            case .readOnly: offered.union(.readOnly)
            case .bare: .hasFlags
            }
        return RequestRules(
            Negotiated(
                export: ExportDescription(name: "x", sizeBytes: Self.size, flags: flags),
                replyMode: export == .bare ? .simple : .structured,
                contexts: export == .bare
                    ? [] : [SelectedContext(id: 0, name: "base:allocation", index: 0)]))
    }
}

@Suite("Request rules")
struct RequestRulesTests {
    @Test(
        "each request gets its verdict",
        arguments: RuleRow.bounds + RuleRow.flagRows + RuleRow.offers + RuleRow.lengths)
    func verdict(_ row: RuleRow) {
        let raw = RawRequest(
            flags: row.flags, type: row.command, cookie: 0x1122_3344_5566_7788,
            offset: row.offset, length: row.length)
        switch (row.rules.check(raw), row.expected) {
        case (.accept(let valid), .accepted):
            #expect(valid.command.rawValue == row.command)
            #expect(valid.cookie == raw.cookie)
            #expect(valid.flags.rawValue == row.flags)
            let isFlush = valid.command == .flush
            #expect(valid.offset == (isFlush ? 0 : row.offset))
            #expect(valid.length == (isFlush ? 0 : row.length))
        case (.refuse(let refusal), .refused(let error)):
            #expect(refusal.error == error)
            #expect(refusal.cookie == raw.cookie)
            #expect(refusal.command == row.command)
            #expect(refusal.payloadBytesToSkip == (row.command == 1 ? row.length : 0))
        case (.disconnect(let refusal), .disconnected):
            #expect(refusal.error == .invalidArgument)
            #expect(refusal.cookie == raw.cookie)
            #expect(refusal.payloadBytesToSkip == 0)
        case (.finish, .finished):
            break
        case (let verdict, _):
            Issue.record("\(verdict)")
        }
    }

    @Test("every reason has an error and a short text", arguments: RefusalReason.allCases)
    func reasons(_ reason: RefusalReason) {
        #expect(reason.error != .none)
        #expect(!reason.text.isEmpty)
        #expect(reason.text.utf8.count <= ProtocolLimits.errorTextBytesMax)
    }
}
