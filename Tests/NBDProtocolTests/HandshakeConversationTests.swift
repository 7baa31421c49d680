import NBDProtocol
import Testing

/// A canned conversation: what the client says, what it hears, and how it ends.
struct Canned: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let client: [UInt8]
    let server: [UInt8]
    let ending: Ending

    init(_ name: String, client: ByteBuilder, server: ByteBuilder, ending: Ending) {
        testDescription = name
        self.client = client.bytes
        self.server = server.bytes
        self.ending = ending
    }

    static func transmission(
        _ index: Int, flags: UInt16, _ mode: ReplyMode = .simple, _ contexts: [SelectedContext] = []
    ) -> Ending {
        var export = FixedDirectory.usual.exports[index]
        export.flags = TransmissionFlags(rawValue: flags)
        return .transmission(Negotiated(export: export, replyMode: mode, contexts: contexts))
    }

    static let bitmap = "qemu:dirty-bitmap:backup-vda"
    static let allocation = SelectedContext(id: 0, name: "base:allocation", index: 0)
    static let dirty = SelectedContext(id: 1, name: bitmap, index: 1)
    static let plain = transmission(0, flags: FixedDirectory.vdaFlags)
    static func structured(_ contexts: [SelectedContext]) -> Ending {
        transmission(0, flags: FixedDirectory.vdaStructuredFlags, .structured, contexts)
    }
    static func extended(_ contexts: [SelectedContext]) -> Ending {
        transmission(0, flags: FixedDirectory.vdaExtendedFlags, .extended, contexts)
    }
    static func goInfo(structured: Bool) -> ByteBuilder {
        goInfo(structured ? FixedDirectory.vdaStructuredFlags : FixedDirectory.vdaFlags)
    }
    static func goInfo(_ flags: UInt16) -> ByteBuilder {
        Server.info(7, size: 1_048_576, flags: flags).then(Server.acknowledge(7))
    }

    static let all: [Canned] = choosing + listing + contexts + extendedHeaders

    static let choosing: [Canned] = [
        Canned(
            "EXPORT_NAME with NO_ZEROES",
            client: bytes.u32(3).then(Client.option(1, bytes.text("vda"))),
            server: bytes.u64(1_048_576).u16(FixedDirectory.vdaFlags), ending: plain),
        Canned(
            "EXPORT_NAME with the 124 zeros, from an old client",
            client: bytes.u32(0).then(Client.option(1, bytes.text("vda"))),
            server: bytes.u64(1_048_576).u16(FixedDirectory.vdaFlags).zeros(124), ending: plain),
        Canned(
            "EXPORT_NAME with structured replies and contexts",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", ["base:allocation"]))
                .then(Client.option(1, bytes.text("vda"))),
            server: Server.acknowledge(8).then(Server.context(10, 0, "base:allocation"))
                .then(Server.acknowledge(10)).u64(1_048_576)
                .u16(FixedDirectory.vdaStructuredFlags),
            ending: structured([allocation])),
        Canned(
            "GO", client: Client.usualFlags.then(Client.go("vda")),
            server: goInfo(structured: false), ending: plain),
        Canned(
            "GO followed by transmission bytes",
            client: Client.usualFlags.then(Client.go("vda")).u32(0x2560_9513).zeros(24),
            server: goInfo(structured: false), ending: plain),
        Canned(
            "GO asking for everything, and for infos that do not exist",
            client: Client.usualFlags.then(Client.go("vda", [1, 2, 3, 0, 99, 65535])),
            server: Server.exportInfo(7, size: 1_048_576, flags: FixedDirectory.vdaFlags)
                .then(Server.reply(7, 3, bytes.u16(1).text("vda")))
                .then(Server.reply(7, 3, bytes.u16(2).text("first disk")))
                .then(Server.blockSizeInfo(7)).then(Server.acknowledge(7)),
            ending: plain),
        Canned(
            "a description that does not exist is not sent",
            client: Client.usualFlags.then(Client.go("vdb", [2])),
            server: Server.info(7, size: 4096, flags: FixedDirectory.vdbFlags)
                .then(Server.acknowledge(7)),
            ending: transmission(1, flags: FixedDirectory.vdbFlags)),
        Canned(
            "INFO, then GO with the same answer",
            client: Client.usualFlags.then(Client.info("vda", [3])).then(Client.go("vda", [3])),
            server: Server.info(6, size: 1_048_576, flags: FixedDirectory.vdaFlags)
                .then(Server.acknowledge(6)).then(goInfo(structured: false)),
            ending: plain),
        Canned(
            "ABORT with a payload nobody reads",
            client: Client.usualFlags.then(Client.option(2, bytes.text("tired"))),
            server: Server.acknowledge(2), ending: .closed(.clientAborted)),
    ]

    static let listing: [Canned] = [
        Canned(
            "LIST, then ABORT",
            client: Client.usualFlags.then(Client.option(3)).then(
                Client.option(2)),
            server: Server.reply(3, 2, bytes.counted("vda").text("first disk"))
                .then(Server.reply(3, 2, bytes.counted("vdb"))).then(Server.acknowledge(3))
                .then(Server.acknowledge(2)),
            ending: .closed(.clientAborted)),
        Canned(
            "LIST_META_CONTEXT with wildcards",
            client: Client.usualFlags.then(Client.listContexts("vda", ["base:"]))
                .then(Client.listContexts("vda", ["qemu:"]))
                .then(Client.listContexts("vda", ["qemu:dirty-bitmap:"]))
                .then(Client.listContexts("vda", []))
                .then(Client.listContexts("vda", [bitmap, "qemu:", "base:allocation"])),
            server: Server.context(9, 0, "base:allocation").then(Server.acknowledge(9))
                .then(Server.context(9, 0, bitmap)).then(Server.acknowledge(9))
                .then(Server.context(9, 0, bitmap)).then(Server.acknowledge(9))
                .then(Server.context(9, 0, "base:allocation")).then(Server.context(9, 0, bitmap))
                .then(Server.acknowledge(9))
                .then(Server.context(9, 0, "base:allocation")).then(Server.context(9, 0, bitmap))
                .then(Server.acknowledge(9)),
            ending: .open),
        Canned(
            "LIST_META_CONTEXT ignores what it does not know",
            client: Client.usualFlags.then(
                Client.listContexts(
                    "vda", ["", "base", "x:y", "qemu:allocation-depth", bitmap + "x", "qemu:d"])),
            server: Server.acknowledge(9), ending: .open),
    ]

    static let contexts: [Canned] = [
        Canned(
            "structured replies, SET_META_CONTEXT, GO",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", [bitmap, "base:allocation", bitmap]))
                .then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.context(10, 0, "base:allocation"))
                .then(Server.context(10, 1, bitmap)).then(Server.acknowledge(10))
                .then(goInfo(structured: true)),
            ending: structured([allocation, dirty])),
        Canned(
            "wildcards select nothing",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", ["base:", "qemu:", "qemu:dirty-bitmap:", ""]))
                .then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.acknowledge(10))
                .then(goInfo(structured: true)),
            ending: structured([])),
        Canned(
            "a later SET_META_CONTEXT replaces the earlier one",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", ["base:allocation"]))
                .then(Client.setContexts("vda", [bitmap])).then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.context(10, 0, "base:allocation"))
                .then(Server.acknowledge(10)).then(Server.context(10, 1, bitmap))
                .then(Server.acknowledge(10)).then(goInfo(structured: true)),
            ending: structured([dirty])),
        Canned(
            "contexts set for one export do not count for another",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vdb", ["base:allocation"])).then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.context(10, 0, "base:allocation"))
                .then(Server.acknowledge(10)).then(goInfo(structured: true)),
            ending: structured([])),
        Canned(
            "a look at another export in between keeps the contexts",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", ["base:allocation"])).then(Client.info("vdb"))
                .then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.context(10, 0, "base:allocation"))
                .then(Server.acknowledge(10))
                .then(Server.info(6, size: 4096, flags: FixedDirectory.vdbFlags | 0x80))
                .then(Server.acknowledge(6)).then(goInfo(structured: true)),
            ending: structured([allocation])),
    ]
}

extension Canned {
    static let extendedHeaders: [Canned] = [
        Canned(
            "EXTENDED_HEADERS, GO",
            client: Client.usualFlags.then(Client.extendedHeaders).then(Client.go("vda")),
            server: Server.acknowledge(11).then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([])),
        Canned(
            "INFO says before any context is set that block status may name contexts",
            client: Client.usualFlags.then(Client.extendedHeaders).then(Client.info("vda"))
                .then(Client.setContexts("vda", [bitmap])).then(Client.go("vda")),
            server: Server.acknowledge(11)
                .then(Server.info(6, size: 1_048_576, flags: FixedDirectory.vdaExtendedFlags))
                .then(Server.acknowledge(6)).then(Server.context(10, 1, bitmap))
                .then(Server.acknowledge(10)).then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([dirty])),
        Canned(
            "EXTENDED_HEADERS takes precedence over STRUCTURED_REPLY",
            client: Client.usualFlags.then(Client.structuredReply).then(Client.extendedHeaders)
                .then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.acknowledge(11))
                .then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([])),
        Canned(
            "EXTENDED_HEADERS, SET_META_CONTEXT, GO: block status may name contexts",
            client: Client.usualFlags.then(Client.extendedHeaders)
                .then(Client.setContexts("vda", [bitmap, "base:allocation"]))
                .then(Client.go("vda")),
            server: Server.acknowledge(11).then(Server.context(10, 0, "base:allocation"))
                .then(Server.context(10, 1, bitmap)).then(Server.acknowledge(10))
                .then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([allocation, dirty])),
        Canned(
            "contexts set before EXTENDED_HEADERS still count",
            client: Client.usualFlags.then(Client.structuredReply)
                .then(Client.setContexts("vda", [bitmap])).then(Client.extendedHeaders)
                .then(Client.info("vda")).then(Client.go("vda")),
            server: Server.acknowledge(8).then(Server.context(10, 1, bitmap))
                .then(Server.acknowledge(10)).then(Server.acknowledge(11))
                .then(
                    Server.info(6, size: 1_048_576, flags: FixedDirectory.vdaExtendedFlags)
                )
                .then(Server.acknowledge(6)).then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([dirty])),
        Canned(
            "contexts of another export do not count",
            client: Client.usualFlags.then(Client.extendedHeaders)
                .then(Client.setContexts("vdb", ["base:allocation"])).then(Client.go("vda")),
            server: Server.acknowledge(11).then(Server.context(10, 0, "base:allocation"))
                .then(Server.acknowledge(10)).then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([])),
        Canned(
            "a refused STRUCTURED_REPLY leaves extended headers on",
            client: Client.usualFlags.then(Client.extendedHeaders).then(Client.structuredReply)
                .then(Client.go("vda")),
            server: Server.acknowledge(11)
                .then(
                    Server.reply(
                        8, 0x8000_000a,
                        bytes.text("extended headers are on and include structured replies"))
                ).then(goInfo(FixedDirectory.vdaExtendedFlags)),
            ending: extended([])),
    ]
}

@Suite("Handshake conversations")
struct HandshakeConversationTests {
    @Test("greeting is NBDMAGIC, IHAVEOPT, fixed newstyle and no zeroes")
    func greeting() {
        #expect(Handshake.greeting == bytes.text("NBDMAGICIHAVEOPT").u16(3).bytes)
    }

    @Test("the client hears exactly the expected bytes", arguments: Canned.all)
    func replies(_ canned: Canned) {
        let outcome = Conversation.run(canned.client)
        #expect(outcome.reply == canned.server)
        #expect(outcome.ending == canned.ending)
    }

    @Test("no split of the stream changes anything", arguments: Canned.all)
    func splits(_ canned: Canned) {
        Conversation.expectSplitsAgree(canned.client)
    }

    @Test("bytes after GO are left to the transmission phase")
    func leavesTransmissionBytes() {
        let handshakeBytes = Client.usualFlags.then(Client.go("vda")).bytes
        let outcome = Conversation.run(handshakeBytes + [1, 2, 3])
        #expect(outcome.consumed == handshakeBytes.count)
    }

    @Test("an ended handshake takes nothing more")
    func handshakeOver() {
        var handshake = Handshake()
        var reply: [UInt8] = []
        let garbage: [UInt8] = [0xff, 0, 0, 0]
        let first = handshake.advance(
            garbage.span, directory: FixedDirectory.usual, reply: &reply)
        #expect(first == .close(consumed: 4, .unknownClientFlags(0xff00_0000)))
        let second = handshake.advance(
            garbage.span, directory: FixedDirectory.usual, reply: &reply)
        #expect(second == .close(consumed: 0, .handshakeOver))
        #expect(reply.isEmpty)
    }

    @Test("an export that loses a selected context cannot be chosen any more")
    func exportChanged() {
        var smaller = FixedDirectory.usual
        smaller.exports[0].contexts = ["base:allocation"]
        let setting = Client.usualFlags.then(Client.structuredReply)
            .then(Client.setContexts("vda", [Canned.bitmap])).bytes
        var handshake = Handshake()
        var reply: [UInt8] = []
        var offset = 0
        while offset < setting.count {
            let step = handshake.advance(
                setting.span.extracting(offset..<setting.count), directory: FixedDirectory.usual,
                reply: &reply)
            guard case .progressed(let consumed) = step else {
                Issue.record("unexpected \(step)")
                return
            }
            offset += consumed
        }
        reply = []
        var byName = handshake
        let name = Client.option(1, bytes.text("vda")).bytes
        let closed = byName.advance(name.span, directory: smaller, reply: &reply)
        #expect(closed == .close(consumed: name.count, .exportChanged))
        #expect(reply.isEmpty)

        let go = Client.go("vda").bytes
        let refused = handshake.advance(go.span, directory: smaller, reply: &reply)
        #expect(refused == .progressed(consumed: go.count))
        #expect(reply.starts(with: bytes.u64(0x0003_e889_0455_65a9).u32(7).u32(0x8000_0006).bytes))
    }

    @Test("a description longer than a string may be is cut between characters")
    func longDescription() {
        var directory = FixedDirectory.usual
        directory.exports[0].description = "x" + String(repeating: "é", count: 3000)
        let outcome = Conversation.run(
            Client.usualFlags.then(Client.go("vda", [2])).bytes, directory: directory)
        let cut = "x" + String(repeating: "é", count: 2047)
        let expected = Server.exportInfo(7, size: 1_048_576, flags: FixedDirectory.vdaFlags)
            .then(Server.reply(7, 3, bytes.u16(2).text(cut)))
            .then(Server.blockSizeInfo(7)).then(Server.acknowledge(7))
        #expect(outcome.reply == expected.bytes)
    }

    @Test("flags an export cannot keep are not promised")
    func impossibleFlags() {
        var directory = FixedDirectory.usual
        directory.exports[0].flags = [.sendFastZero, .sendDF, .sendResize, .blockStatusPayload]
        let outcome = Conversation.run(
            Client.usualFlags.then(Client.go("vda")).bytes, directory: directory)
        guard case .transmission(let negotiated) = outcome.ending else {
            Issue.record("ended with \(outcome.ending)")
            return
        }
        #expect(negotiated.export.flags == .hasFlags)
    }

    @Test("names that differ only in how characters are composed are different names")
    func composedNames() {
        // The directory finds both spellings, as Swift strings compare; the contexts must not.
        var directory = FixedDirectory.usual
        directory.exports[0].name = "caf\u{e9}"
        let client = Client.usualFlags.then(Client.structuredReply)
            .then(Client.setContexts("caf\u{e9}", ["base:allocation"]))
            .then(Client.go("cafe\u{301}"))
        let outcome = Conversation.run(client.bytes, directory: directory)
        guard case .transmission(let negotiated) = outcome.ending else {
            Issue.record("ended with \(outcome.ending)")
            return
        }
        #expect(negotiated.contexts.isEmpty)
    }
}
