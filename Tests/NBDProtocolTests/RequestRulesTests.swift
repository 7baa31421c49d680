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
        /// Everything offered, extended headers, three contexts; larger than 32 bits can say.
        case vast
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
    static let vastSize: UInt64 = 1 << 44
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

    static let extendedBounds: [RuleRow] = ranged.flatMap { command -> [RuleRow] in
        let error: WireError =
            command == .write || command == .writeZeroes ? .noSpace : .invalidArgument
        let flags: UInt16 = command == .write ? 32 : 0
        let isShort = command == .read || command == .write
        func row(_ offset: UInt64, _ length: UInt64, _ expected: Expected) -> RuleRow {
            RuleRow(.vast, command, flags: flags, offset, length, expected)
        }
        let ends = [
            row(vastSize - 1, 1, .accepted), row(vastSize - 1, 2, .refused(error)),
            row(.max, 1, .refused(error)),
        ]
        if isShort { return ends }
        return ends + [
            row(0, 1 << 32, .accepted), row(7, 5 << 30, .accepted), row(0, vastSize, .accepted),
            row(0, vastSize + 1, .refused(error)), row(1, vastSize, .refused(error)),
            row(0, .max, .refused(error)), row(.max, .max, .refused(error)),
            row(2, .max - 1, .refused(error)),
        ]
    }

    static let others: [RuleRow] = [
        RuleRow(.readOnly, .write, size, 1, .refused(.notPermitted)),
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
        RuleRow(.vast, .read, 0, 64 * mebibyte + 1, .refused(.invalidArgument)),
        RuleRow(.vast, .read, 0, 1 << 33, .refused(.invalidArgument)),
        RuleRow(.vast, .read, 0, .max, .refused(.invalidArgument)),
        RuleRow(.vast, .write, flags: 32, 0, 0, .accepted),
        // As qemu 8.2 to 10.0 sends it: without the flag that announces the payload.
        RuleRow(.vast, .write, flags: 0, 0, 0, .accepted),
        RuleRow(.vast, .write, flags: 0, 0, 1, .accepted),
        RuleRow(.vast, .write, flags: 1, 0, 512, .accepted),
        RuleRow(.vast, .write, flags: 0, 0, 64 * mebibyte, .accepted),
        RuleRow(.vast, .write, flags: 0, vastSize, 1, .refused(.noSpace)),
        RuleRow(.vast, .write, flags: 2, 0, 512, .refused(.invalidArgument)),
        RuleRow(.vast, .write, flags: 0, 0, 64 * mebibyte + 1, .refused(.invalidArgument)),
        RuleRow(.vast, .write, flags: 0, 0, 128 * mebibyte + 1, .disconnected),
        RuleRow(.vast, .write, flags: 0, .max, .max, .disconnected),
        RuleRow(.vast, .write, flags: 32, 0, 64 * mebibyte, .accepted),
        RuleRow(.vast, .write, flags: 32, 0, 64 * mebibyte + 1, .refused(.invalidArgument)),
        RuleRow(.vast, .write, flags: 32, 0, 128 * mebibyte, .refused(.invalidArgument)),
        RuleRow(.vast, .write, flags: 32, 0, 128 * mebibyte + 1, .disconnected),
        RuleRow(.vast, .write, flags: 32, 0, .max, .disconnected),
    ]

    /// Payloads where none belongs: skipped up to 64 MiB.
    static let strayPayloads: [RuleRow] = [UInt16]([0, 2, 3, 4, 5, 6, 8, .max]).flatMap {
        command -> [RuleRow] in
        if command == 2 {
            return [RuleRow(.vast, number: 2, flags: .max, .max, .max, .finished)]
        }
        func row(_ length: UInt64, _ expected: Expected) -> RuleRow {
            RuleRow(.vast, number: command, flags: 32, 0, length, expected)
        }
        return [
            row(0, .refused(.invalidArgument)), row(1, .refused(.invalidArgument)),
            row(64 * mebibyte, .refused(.invalidArgument)),
            row(64 * mebibyte + 1, .disconnected), row(1 << 32, .disconnected),
            row(.max, .disconnected),
        ]
    }

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
            case .vast: offered.union(.blockStatusPayload)
            }
        let contexts: [SelectedContext] =
            switch export {
            case .bare: []
            case .full, .readOnly: [SelectedContext(id: 0, name: "base:allocation", index: 0)]
            case .vast: Self.vastContexts
            }
        return RequestRules(
            Negotiated(
                export: ExportDescription(name: "x", sizeBytes: sizeBytes, flags: flags),
                replyMode: mode, contexts: contexts))
    }

    static let vastContexts: [SelectedContext] = [0, 3, 255].map {
        SelectedContext(id: $0, name: "x:\($0)", index: Int($0))
    }
    var sizeBytes: UInt64 { export == .vast ? Self.vastSize : Self.size }
    var mode: ReplyMode {
        switch export {
        case .full, .readOnly: .structured
        case .bare: .simple
        case .vast: .extended
        }
    }
    /// Bytes behind the header.
    var payloadBytes: UInt64 {
        let hasPayload = command == 1 || (mode == .extended && flags & 32 != 0)
        return hasPayload ? length : 0
    }
}

@Suite("Request rules")
struct RequestRulesTests {
    @Test(
        "each request gets its verdict",
        arguments: RuleRow.bounds + RuleRow.extendedBounds + RuleRow.others + RuleRow.lengths
            + RuleRow.strayPayloads)
    func verdict(_ row: RuleRow) {
        let raw = RawRequest(
            flags: row.flags, type: row.command, cookie: 0x1122_3344_5566_7788,
            offset: row.offset, length: row.length)
        switch (row.rules.check(raw), row.expected) {
        case (.acceptStatus(let valid, let asked), .accepted):
            #expect(row.command == 7 && asked.count == (row.export == .vast ? 3 : 1))
            #expect(valid.echo == raw.echo)
            #expect(valid.offset == row.offset && valid.length == row.length)
        case (.accept(let valid), .accepted):
            #expect(valid.command.rawValue == row.command && row.command != 7)
            #expect(valid.echo == raw.echo)
            #expect(valid.flags.rawValue == row.flags & ~32)
            let isFlush = valid.command == .flush
            #expect(valid.offset == (isFlush ? 0 : row.offset))
            #expect(valid.length == (isFlush ? 0 : row.length))
        case (.refuse(let refusal), .refused(let error)):
            #expect(refusal.error == error)
            #expect(refusal.echo == raw.echo)
            #expect(refusal.command == row.command)
            #expect(refusal.payloadBytesToSkip == row.payloadBytes)
        case (.disconnect(let refusal), .disconnected):
            #expect(refusal.error == .invalidArgument)
            #expect(refusal.echo == raw.echo)
            #expect(refusal.payloadBytesToSkip == 0)
        case (.finish, .finished):
            break
        case (let verdict, _):
            Issue.record("\(verdict)")
        }
    }

    /// One BLOCK_STATUS with a payload, on an export whose contexts have the ids 0, 3 and 255.
    struct Named: CustomTestStringConvertible, Sendable {
        let payload: [UInt8]
        var flags: UInt16 = 32
        enum Expected: Sendable { case answered([UInt32]), refused(RefusalReason) }
        let expected: Expected
        var testDescription: String { "\(payload) \(flags): \(expected)" }

        init(_ payload: ByteBuilder, flags: UInt16 = 32, ids: [UInt32]) {
            self.payload = payload.bytes
            self.flags = flags
            expected = .answered(ids)
        }

        init(_ payload: ByteBuilder, flags: UInt16 = 32, _ reason: RefusalReason) {
            self.payload = payload.bytes
            self.flags = flags
            expected = .refused(reason)
        }

        static func list(_ effect: UInt64, _ ids: [UInt32]) -> ByteBuilder {
            ids.reduce(bytes.u64(effect)) { $0.u32($1) }
        }

        static let size = RuleRow.vastSize
        static let all: [Named] = [
            Named(list(4096, [0]), ids: [0]), Named(list(4096, [3]), ids: [3]),
            Named(list(4096, [255]), ids: [255]), Named(list(4096, [255, 0]), ids: [0, 255]),
            Named(list(4096, [3, 255, 0]), ids: [0, 3, 255]),
            Named(list(size, [0]), ids: [0]), Named(list(1, [0]), ids: [0]),
            Named(list(4096, [0]), flags: 32 | 8 | 1, ids: [0]),
            // Not a length and one to three ids.
            Named(bytes, .malformedContextList), Named(bytes.zeros(1), .malformedContextList),
            Named(bytes.zeros(7), .malformedContextList),
            Named(bytes.u64(4096), .malformedContextList),
            Named(bytes.u64(4096).zeros(1), .malformedContextList),
            Named(bytes.u64(4096).zeros(3), .malformedContextList),
            Named(bytes.u64(4096).zeros(5), .malformedContextList),
            Named(list(4096, [0, 3, 255, 0]), .malformedContextList),
            Named(list(4096, [0, 1, 2, 3, 4]), .malformedContextList),
            Named(bytes.zeros(65_536), .malformedContextList),
            // Ids that were never given out, or twice.
            Named(list(4096, [1]), .wrongContextID), Named(list(4096, [0, 1]), .wrongContextID),
            Named(list(4096, [256]), .wrongContextID), Named(list(4096, [.max]), .wrongContextID),
            Named(list(4096, [1 << 31]), .wrongContextID),
            Named(list(4096, [0, 0]), .wrongContextID),
            Named(list(4096, [255, 3, 255]), .wrongContextID),
            // The effect, not the payload, lies in the export.
            Named(list(0, [0]), .emptyStatusRange), Named(list(size + 1, [0]), .rangeBeyondEnd),
            Named(list(.max, [0]), .rangeBeyondEnd),
            // Other flags are looked at first, and the payload is skipped all the same.
            Named(list(4096, [0]), flags: 32 | 2, .flagNotSupported),
            Named(list(4096, [0]), flags: 32 | 1 << 15, .flagNotSupported),
        ]
    }

    @Test("a status request that names contexts is for those", arguments: Named.all)
    func named(_ row: Named) {
        let raw = RawRequest(
            flags: row.flags, type: 7, cookie: 5, offset: 0, length: UInt64(row.payload.count))
        let rules = RuleRow(.vast, .blockStatus, 0, 0, .finished).rules
        let seen = rules.payloadBytesToSee(raw)
        let payload = Array(row.payload.prefix(seen))
        switch (rules.check(raw, payload: payload.span), row.expected) {
        case (.acceptStatus(let valid, let asked), .answered(let ids)):
            #expect(seen == row.payload.count)
            #expect((0..<300).filter { asked.contains($0) } == ids)
            #expect(valid.offset == 0 && valid.length == row.payload.span.number(at: 0))
            #expect(valid.flags.rawValue == row.flags & ~32)
        case (.refuse(let refusal), .refused(let reason)):
            #expect(refusal.reason == reason && refusal.error == .invalidArgument)
            #expect(seen + Int(refusal.payloadBytesToSkip) == row.payload.count)
        case (let verdict, _):
            Issue.record("\(verdict)")
        }
        #expect(seen <= RequestReader.inputBytesMax - 32)
    }

    @Test("every reason has an error and a short text", arguments: RefusalReason.allCases)
    func reasons(_ reason: RefusalReason) {
        #expect(reason.error != .none)
        #expect(!reason.text.isEmpty)
        #expect(reason.text.utf8.count <= ProtocolLimits.errorTextBytesMax)
    }
}
