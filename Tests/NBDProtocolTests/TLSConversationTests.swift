import NBDProtocol
import Testing

@Suite("STARTTLS")
struct TLSConversationTests {
    private static let startTLS = Client.option(5)
    private static let tlsRequired: UInt32 = 0x8000_0005

    /// A conversation in which TLS has just come to stand.
    private func secured(
        _ tls: TLSPolicy, after plaintext: ByteBuilder = bytes, isImpatient: Bool = false
    ) -> Conversation {
        var conversation = Conversation(tls: tls, isImpatient: isImpatient)
        conversation.receive(Client.usualFlags.then(plaintext).then(Self.startTLS).bytes)
        conversation.secured()
        return conversation
    }

    @Test("is acknowledged in plaintext, and ends it", arguments: [TLSPolicy.selective, .required])
    func begins(tls: TLSPolicy) {
        let client = Client.usualFlags.then(Self.startTLS)
        let outcome = Conversation.run(client.bytes, tls: tls)
        #expect(outcome.ending == .securing)
        #expect(outcome.reply == Server.acknowledge(5).bytes)
        Conversation.expectSplitsAgree(client.bytes, tls: tls)
    }

    @Test("with data is refused and does not begin", arguments: [TLSPolicy.selective, .required])
    func withData(tls: TLSPolicy) {
        let client = Client.usualFlags.then(Client.option(5, bytes.zeros(3)))
        let outcome = Conversation.run(client.bytes, tls: tls)
        #expect(outcome.ending == .open)
        #expect(lastReplyType(outcome.reply) == 0x8000_0003)
        Conversation.expectSplitsAgree(client.then(Client.option(2)).bytes, tls: tls)
    }

    @Test("a second one is refused", arguments: [TLSPolicy.selective, .required])
    func twice(tls: TLSPolicy) {
        var conversation = secured(tls)
        conversation.receive(Self.startTLS.bytes)
        #expect(conversation.outcome.ending == .open)
        #expect(lastReplyType(conversation.outcome.reply) == 0x8000_0003)
    }

    @Test("from a client without fixed newstyle ends the connection")
    func oldClient() {
        let outcome = Conversation.run(bytes.u32(0).then(Self.startTLS).bytes, tls: .required)
        #expect(outcome.ending == .closed(.optionNeedsFixedNewstyle(code: 5)))
        #expect(outcome.reply.isEmpty)
    }

    // MARK: Required

    /// Everything that is neither STARTTLS nor ABORT nor EXPORT_NAME, well formed or not.
    static let needsTLS: [Malformed] =
        Malformed.inStep.filter { $0.code != 5 }
        + [
            Malformed("LIST", 3, bytes, .refused(tlsRequired)),
            Malformed("STRUCTURED_REPLY", 8, bytes, .refused(tlsRequired)),
            Malformed("INFO", 6, Client.infoPayload("vda", []), .refused(tlsRequired)),
            Malformed("GO", 7, Client.infoPayload("vda", [3]), .refused(tlsRequired)),
            Malformed(
                "SET_META_CONTEXT", 10, Client.metaPayload("vda", ["base:allocation"]),
                .refused(tlsRequired)),
        ]

    @Test(
        "required: every other option is refused before it (CVE-2019-14842)", arguments: needsTLS)
    func required(_ row: Malformed) {
        let client = Client.usualFlags.raw(row.client)
        let outcome = Conversation.run(client.bytes, tls: .required)
        #expect(outcome.ending == .open)
        #expect(outcome.consumed == client.bytes.count)
        #expect(lastReplyType(outcome.reply) == Self.tlsRequired)
        // Still in step.
        let begun = Conversation.run(client.then(Self.startTLS).bytes, tls: .required)
        #expect(begun.ending == .securing)
        #expect(begun.reply == outcome.reply + Server.acknowledge(5).bytes)
        if client.bytes.count < 200 {
            Conversation.expectSplitsAgree(client.then(Self.startTLS).bytes, tls: .required)
        }
    }

    @Test("required: ABORT works before it, EXPORT_NAME ends the connection")
    func requiredEnds() {
        let aborted = Conversation.run(
            Client.usualFlags.then(Client.option(2)).bytes, tls: .required)
        #expect(aborted.ending == .closed(.clientAborted))
        #expect(aborted.reply == Server.acknowledge(2).bytes)
        for name in ["vda", "nosuch"] {
            let client = Client.usualFlags.then(Client.option(1, bytes.text(name)))
            let outcome = Conversation.run(client.bytes, tls: .required)
            #expect(outcome.ending == .closed(.tlsRequired))
            #expect(outcome.reply.isEmpty)
        }
    }

    @Test("required: refusals count as options, so nobody stays in plaintext for ever")
    func requiredFlood() {
        var client = Client.usualFlags
        for _ in 0..<32 { client = client.then(Client.option(77)) }
        #expect(Conversation.run(client.bytes, tls: .required).ending == .open)
        let outcome = Conversation.run(client.then(Self.startTLS).bytes, tls: .required)
        #expect(outcome.ending == .closed(.tooManyOptions(limit: 32)))
    }

    // MARK: Selective

    @Test("selective: an export that is not there for a plaintext peer needs TLS")
    func selectiveUnknown() {
        for client in [Client.go("nosuch"), Client.info("nosuch")] {
            let outcome = Conversation.run(
                Client.usualFlags.then(client).bytes, tls: .selective)
            #expect(outcome.ending == .open)
            #expect(lastReplyType(outcome.reply) == Self.tlsRequired)
            var after = secured(.selective)
            after.receive(client.bytes)
            #expect(lastReplyType(after.outcome.reply) == 0x8000_0006)
        }
        let named = Conversation.run(
            Client.usualFlags.then(Client.option(1, bytes.text("nosuch"))).bytes, tls: .selective)
        #expect(named.ending == .closed(.unknownExport))
    }

    @Test("selective: everything else works as without TLS")
    func selectivePlaintext() {
        for row in Malformed.inStep where ![5, 6, 7].contains(row.code) {
            let client = Client.usualFlags.raw(row.client).bytes
            #expect(Conversation.run(client, tls: .selective) == Conversation.run(client))
        }
        for canned in Canned.all {
            #expect(
                Conversation.run(canned.client, tls: .selective) == Conversation.run(canned.client))
        }
    }

    // MARK: Afterwards

    @Test(
        "TLS stands: options are answered as without TLS, never with TLS_REQD",
        arguments: Malformed.inStep.filter { $0.code != 5 })
    func afterwards(_ row: Malformed) {
        let plain = Conversation.run(Client.usualFlags.raw(row.client).bytes)
        for tls in [TLSPolicy.selective, .required] {
            var conversation = secured(tls)
            conversation.receive(row.client)
            #expect(conversation.outcome.reply == plain.reply)
            #expect(conversation.outcome.ending == plain.ending)
            #expect(conversation.outcome.consumed == row.client.count)
        }
    }

    @Test("everything negotiated in plaintext is forgotten (CVE-2021-3716)")
    func forgets() {
        let plaintext = Client.structuredReply.then(Client.option(3))
            .then(Client.setContexts("vda", ["base:allocation"]))
        var chosen = secured(.selective, after: plaintext)
        chosen.receive(Client.go("vda").bytes)
        guard case .transmission(let negotiated) = chosen.outcome.ending else {
            Issue.record("GO failed")
            return
        }
        #expect(negotiated.replyMode == .simple)
        #expect(negotiated.contexts.isEmpty)

        var fresh = secured(.selective, after: plaintext)
        fresh.receive(Client.setContexts("vda", ["base:allocation"]).bytes)
        #expect(lastReplyType(fresh.outcome.reply) == 0x8000_0003)
        fresh.receive(Client.option(3).bytes)
        #expect(lastReplyType(fresh.outcome.reply) == 1)
        fresh.receive(Client.structuredReply.bytes)
        #expect(lastReplyType(fresh.outcome.reply) == 1)
    }

    @Test("the client's flags are remembered: they are not sent again", arguments: [1, 3])
    func remembersFlags(flags: UInt32) {
        var conversation = Conversation(tls: .required)
        conversation.receive(bytes.u32(flags).then(Self.startTLS).bytes)
        conversation.secured()
        conversation.receive(Client.option(1, bytes.text("vdb")).bytes)
        #expect(conversation.outcome.reply.count == (flags & 2 == 0 ? 134 : 10))
    }

    @Test("plaintext behind it is never answered, however the bytes arrive (CVE-2021-3716)")
    func injected() {
        let clear = Client.usualFlags.then(Self.startTLS).bytes
        let injected = Client.structuredReply.then(Client.option(3)).then(Client.go("vda")).bytes
        let stream = clear + injected
        for isImpatient in [false, true] {
            for cut in 0...stream.count {
                var conversation = Conversation(tls: .selective, isImpatient: isImpatient)
                conversation.receive(stream[..<cut])
                if cut == clear.count {
                    // The driver hands what follows to TLS, which knows no such record.
                    #expect(conversation.outcome.ending == .securing)
                    continue
                }
                conversation.receive(stream[cut...])
                #expect(conversation.outcome.ending == .closed(.plaintextBehindStartTLS))
                #expect(conversation.outcome.reply.isEmpty)
            }
        }
    }

    @Test("nothing is consumed between STARTTLS and TLS")
    func betweenTheTwo() {
        var handshake = Handshake(tls: .required)
        var reply: [UInt8] = []
        let flags = Client.usualFlags.bytes
        #expect(
            handshake.advance(flags.span, directory: FixedDirectory.usual, reply: &reply)
                == .progressed(consumed: 4))
        let option = Self.startTLS.bytes
        #expect(
            handshake.advance(option.span, directory: FixedDirectory.usual, reply: &reply)
                == .startTLS(consumed: 16))
        let more = Client.go("vda").bytes
        #expect(
            handshake.advance(more.span, directory: FixedDirectory.usual, reply: &reply)
                == .close(consumed: 0, .handshakeOver))
        #expect(reply == Server.acknowledge(5).bytes)
    }

    private func lastReplyType(_ stream: [UInt8]) -> UInt32? {
        var rest = stream[...]
        var type: UInt32?
        while rest.count >= 20 {
            let header = Array(rest.prefix(20))
            func word(_ at: Int) -> UInt32 {
                header[at..<(at + 4)].reduce(0) { $0 << 8 | UInt32($1) }
            }
            type = word(12)
            rest = rest.dropFirst(20 + Int(word(16)))
        }
        return rest.isEmpty ? type : nil
    }
}
