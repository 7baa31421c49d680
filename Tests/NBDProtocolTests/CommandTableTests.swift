import NBDProtocol
import Testing
import WireClient

/// Every command, with every flag, in every mode, on every kind of export.
///
/// `ok`: carried out. `EINVAL`, `EPERM`: the error, and no payload to skip. `+`: and the payload is
/// skipped. `ends`: the connection ends without a reply.
enum CommandTable {
    /// One flag at a time on an export that offers everything and has a context selected where
    /// there can be one; `-` is no flag, `other` each of the ten bits without a meaning.
    ///
    /// Lengths are 12 bytes, which for a BLOCK_STATUS with PAYLOAD_LEN is a context list. An
    /// extended WRITE is tried with PAYLOAD_LEN besides the flag and, as qemu sends it, without.
    static let flags = TextTable(
        keys: 2,
        """
        mode       command      | -      FUA     NO_HOLE DF      REQ_ONE FAST_ZERO PAYLOAD_LEN other
        simple     READ         | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     WRITE        | ok     ok      EINVAL+ EINVAL+ EINVAL+ EINVAL+   EINVAL+     EINVAL+
        simple     DISC         | ends   ends    ends    ends    ends    ends      ends        ends
        simple     FLUSH        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     TRIM         | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     CACHE        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     WRITE_ZEROES | ok     ok      ok      EINVAL  EINVAL  ok        EINVAL      EINVAL
        simple     BLOCK_STATUS | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     8            | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        simple     65535        | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        structured READ         | ok     ok      EINVAL  ok      EINVAL  EINVAL    EINVAL      EINVAL
        structured WRITE        | ok     ok      EINVAL+ EINVAL+ EINVAL+ EINVAL+   EINVAL+     EINVAL+
        structured DISC         | ends   ends    ends    ends    ends    ends      ends        ends
        structured FLUSH        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        structured TRIM         | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        structured CACHE        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        structured WRITE_ZEROES | ok     ok      ok      EINVAL  EINVAL  ok        EINVAL      EINVAL
        structured BLOCK_STATUS | ok     ok      EINVAL  EINVAL  ok      EINVAL    EINVAL      EINVAL
        structured 8            | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        structured 65535        | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL      EINVAL
        extended   READ         | ok     ok      EINVAL  ok      EINVAL  EINVAL    EINVAL+     EINVAL
        extended   WRITE        | ok     ok      EINVAL+ EINVAL+ EINVAL+ EINVAL+   ok          EINVAL+
        extended   DISC         | ends   ends    ends    ends    ends    ends      ends        ends
        extended   FLUSH        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL+     EINVAL
        extended   TRIM         | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL+     EINVAL
        extended   CACHE        | ok     ok      EINVAL  EINVAL  EINVAL  EINVAL    EINVAL+     EINVAL
        extended   WRITE_ZEROES | ok     ok      ok      EINVAL  EINVAL  ok        EINVAL+     EINVAL
        extended   BLOCK_STATUS | ok     ok      EINVAL  EINVAL  ok      EINVAL    ok          EINVAL
        extended   8            | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL+     EINVAL
        extended   65535        | EINVAL EINVAL  EINVAL  EINVAL  EINVAL  EINVAL    EINVAL+     EINVAL
        """)

    /// Without flags, but for an extended WRITE, which is tried with and without PAYLOAD_LEN.
    ///
    /// `full` offers everything, `readOnly` besides is read-only, `bare` offers nothing, `mute` has
    /// no context selected. FUA and PAYLOAD_LEN with `+F` and `+P`.
    static let exports = TextTable(
        keys: 2,
        """
        mode       command        | full   readOnly bare     mute
        simple     READ           | ok     ok       ok       ok
        simple     READ+F         | ok     ok       EINVAL   ok
        simple     WRITE          | ok     EPERM+   ok       ok
        simple     WRITE+F        | ok     EPERM+   EINVAL+  ok
        simple     DISC           | ends   ends     ends     ends
        simple     FLUSH          | ok     ok       EINVAL   ok
        simple     TRIM           | ok     EPERM    EINVAL   ok
        simple     CACHE          | ok     ok       ok       ok
        simple     WRITE_ZEROES   | ok     EPERM    EINVAL   ok
        simple     BLOCK_STATUS   | EINVAL EINVAL   EINVAL   EINVAL
        structured READ           | ok     ok       ok       ok
        structured READ+F         | ok     ok       EINVAL   ok
        structured WRITE          | ok     EPERM+   ok       ok
        structured WRITE+F        | ok     EPERM+   EINVAL+  ok
        structured DISC           | ends   ends     ends     ends
        structured FLUSH          | ok     ok       EINVAL   ok
        structured TRIM           | ok     EPERM    EINVAL   ok
        structured CACHE          | ok     ok       ok       ok
        structured WRITE_ZEROES   | ok     EPERM    EINVAL   ok
        structured BLOCK_STATUS   | ok     ok       ok       EINVAL
        extended   READ           | ok     ok       ok       ok
        extended   READ+F         | ok     ok       EINVAL   ok
        extended   READ+P         | EINVAL+ EINVAL+ EINVAL+  EINVAL+
        extended   WRITE          | ok     EPERM+   ok       ok
        extended   WRITE+F        | ok     EPERM+   EINVAL+  ok
        extended   DISC           | ends   ends     ends     ends
        extended   FLUSH          | ok     ok       EINVAL   ok
        extended   TRIM           | ok     EPERM    EINVAL   ok
        extended   TRIM+P         | EINVAL+ EPERM+  EINVAL+  EINVAL+
        extended   CACHE          | ok     ok       ok       ok
        extended   WRITE_ZEROES   | ok     EPERM    EINVAL   ok
        extended   WRITE_ZEROES+P | EINVAL+ EPERM+  EINVAL+  EINVAL+
        extended   BLOCK_STATUS   | ok     ok       ok       EINVAL
        extended   BLOCK_STATUS+P | ok     ok       ok       EINVAL+
        """)

    static let commands: [String: UInt16] = [
        "READ": 0, "WRITE": 1, "DISC": 2, "FLUSH": 3, "TRIM": 4, "CACHE": 5, "WRITE_ZEROES": 6,
        "BLOCK_STATUS": 7,
    ]
    static let bits: [String: [UInt16]] = [
        "-": [0], "FUA": [1], "NO_HOLE": [2], "DF": [4], "REQ_ONE": [8], "FAST_ZERO": [16],
        "PAYLOAD_LEN": [32], "other": (6..<16).map { 1 << $0 },
    ]
    static let modes: [String: ReplyMode] = [
        "simple": .simple, "structured": .structured, "extended": .extended,
    ]

    /// What the handshake would agree on for such an export.
    static func negotiated(
        _ export: String, _ mode: ReplyMode, sizeBytes: UInt64 = 1 << 20
    ) throws -> Negotiated {
        let offers: TransmissionFlags =
            switch export {
            case "readOnly":
                [
                    .readOnly, .sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero,
                    .sendCache,
                ]
            case "bare": []
            default:
                [
                    .sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero, .sendCache,
                ]
            }
        let directory = FixedDirectory(exports: [
            ExportDescription(name: "x", sizeBytes: sizeBytes, flags: offers)
        ])
        var client = Client.usualFlags
        if mode == .structured { client = client.then(Client.structuredReply) }
        if mode == .extended { client = client.then(Client.extendedHeaders) }
        if mode != .simple, export != "mute" {
            client = client.then(Client.setContexts("x", ["base:allocation"]))
        }
        let outcome = Conversation.run(client.then(Client.go("x")).bytes, directory: directory)
        guard case .transmission(let negotiated) = outcome.ending else {
            throw WireViolation("ended with \(outcome.ending)")
        }
        return negotiated
    }
}

@Suite("Commands in every state")
struct CommandTableTests {
    /// What follows each header: an effect length of 4096 and the id 0.
    private static let payload = bytes.u64(4096).u32(0).bytes
    private static let cookie: UInt64 = 0x1122_3344_5566_7788

    private func check(
        _ expected: String, _ mode: ReplyMode, _ export: String, command: UInt16, flags: UInt16
    ) throws {
        let negotiated = try CommandTable.negotiated(export, mode)
        let wireMode: WireMode =
            switch mode {
            case .simple: .simple
            case .structured: .structured
            case .extended: .extended
            }
        let what = "\(mode) \(export) command \(command) flags \(flags)"
        let header = WireRequest(
            command, flags: flags, cookie: Self.cookie, offset: 8192, length: 12
        ).bytes(wireMode)
        let next = WireRequest(WireCommand.flush).bytes(wireMode)
        let skips = expected.hasSuffix("+")

        var reader = RequestReader(negotiated)
        let stream = header + Self.payload
        guard case .request(let verdict, let consumed) = reader.next(stream.span) else {
            Issue.record("no request: \(what)")
            return
        }
        let isList = command == 7 && flags & 32 != 0 && expected == "ok"
        #expect(consumed == header.count + (isList ? 12 : 0), "\(what)")
        switch (expected, verdict) {
        case ("ok", .accept(let valid)):
            #expect(valid.command.rawValue == command && command != 7)
            #expect(valid.echo == RequestEcho(cookie: Self.cookie, offset: 8192))
            #expect(valid.flags.rawValue == flags & ~32, "\(what)")
            return
        case ("ok", .acceptStatus(let valid, let asked)):
            #expect(command == 7 && asked.contains(0) && asked.count == 1)
            #expect(valid.length == (isList ? 4096 : 12))
            return
        case ("EINVAL", .refuse(let refusal)), ("EINVAL+", .refuse(let refusal)):
            #expect(refusal.error == .invalidArgument, "\(what)")
        case ("EPERM", .refuse(let refusal)), ("EPERM+", .refuse(let refusal)):
            #expect(refusal.error == .notPermitted, "\(what)")
        case ("ends", .finish):
            return
        default:
            Issue.record("\(verdict): \(what)")
            return
        }
        // Still in step: the next request is understood, behind the payload or at once.
        let rest = (skips ? Self.payload : []) + next
        var position = 0
        if skips {
            #expect(reader.next(rest.span) == .progressed(consumed: 12), "\(what)")
            position = 12
        }
        let following = reader.next(rest.span.extracting(position..<rest.count))
        guard case .request(_, let size) = following else {
            Issue.record("out of step: \(what)")
            return
        }
        #expect(size == next.count)
    }

    @Test("each command gets its verdict with each flag", arguments: CommandTable.flags.cells)
    func flags(_ cell: TextTable.Cell) throws {
        let mode = try #require(CommandTable.modes[cell.row[0]])
        let command = try #require(CommandTable.commands[cell.row[1]] ?? UInt16(cell.row[1]))
        for bit in try #require(CommandTable.bits[cell.column]) {
            try check(cell.value, mode, "full", command: command, flags: bit)
            if mode == .extended, command == 1 {
                try check(cell.value, mode, "full", command: command, flags: bit | 32)
            }
        }
    }

    @Test("each command gets its verdict on each export", arguments: CommandTable.exports.cells)
    func exports(_ cell: TextTable.Cell) throws {
        let mode = try #require(CommandTable.modes[cell.row[0]])
        let parts = cell.row[1].split(separator: "+").map(String.init)
        let command = try #require(CommandTable.commands[parts[0]])
        var flags: UInt16 = 0
        if parts.dropFirst().contains("F") { flags |= 1 }
        if parts.dropFirst().contains("P") { flags |= 32 }
        try check(cell.value, mode, cell.column, command: command, flags: flags)
        if mode == .extended, command == 1 {
            try check(cell.value, mode, cell.column, command: command, flags: flags | 32)
        }
    }

    @Test("the tables have every command in every mode, and every flag")
    func isWhole() {
        for table in [CommandTable.flags, CommandTable.exports] {
            for mode in CommandTable.modes.keys {
                for command in CommandTable.commands.keys {
                    #expect(table.rows.contains([mode, command]), "\(mode) \(command)")
                }
            }
        }
        let bits = CommandTable.flags.columns.compactMap { CommandTable.bits[$0] }.joined()
        #expect(bits.reduce(0, |) == UInt16.max)
    }
}
