import NBDProtocol
import Testing
import UnitSupport
import WireClient

@Suite("Random input")
struct GarbageTests {
    @Test("mutated handshakes never trap, and splits agree", arguments: 1...8)
    func handshake(seed: Int) {
        var random = SplitMix64(seed: UInt64(seed))
        for _ in 0..<150 {
            let stream = Self.stream(&random)
            let whole = Conversation.run(stream)
            var pieces = Conversation(isImpatient: seed.isMultiple(of: 2))
            var rest = stream[...]
            while !rest.isEmpty {
                let count = 1 + random.below(min(rest.count, 64))
                pieces.receive(rest.prefix(count))
                rest = rest.dropFirst(count)
            }
            #expect(pieces.outcome == whole, "seed=\(seed) stream=\(stream)")
        }
    }

    @Test("random requests get a verdict that keeps the range inside the export", arguments: 1...8)
    func requests(seed: Int) {
        var random = SplitMix64(seed: UInt64(seed))
        let interesting: [UInt64] = [
            0, 1, 511, 512, 4095, 4096, 4097, 1 << 26, 1 << 27, 1 << 32, 1 << 63, .max - 1, .max,
        ]
        func number(_ random: inout SplitMix64) -> UInt64 {
            random.below(4) == 0 ? random.next() : interesting[random.below(interesting.count)]
        }
        for _ in 0..<20_000 {
            let size = number(&random)
            let export = ExportDescription(
                name: "x", sizeBytes: size,
                flags: TransmissionFlags(rawValue: UInt16(truncatingIfNeeded: random.next())))
            let mode = ReplyMode.allCases[random.below(3)]
            let rules = RequestRules(
                Negotiated(
                    export: export, replyMode: mode,
                    contexts: mode == .simple
                        ? [] : [SelectedContext(id: 7, name: "x:y", index: 7)]))
            let raw = RawRequest(
                flags: UInt16(random.below(3) == 0 ? random.below(65536) : 0),
                type: UInt16(random.below(9)), cookie: random.next(), offset: number(&random),
                length: number(&random))
            let hasPayload = raw.type == 1 || (mode == .extended && raw.flags & 32 != 0)
            let seen = rules.payloadBytesToSee(raw)
            let payload = (0..<seen).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            switch rules.check(raw, payload: payload.span) {
            case .acceptStatus(let valid, let asked):
                let end = valid.offset.addingReportingOverflow(valid.length)
                #expect(!end.overflow && end.partialValue <= size, "seed=\(seed) \(raw)")
                #expect(asked.count == 1 && asked.contains(7) && mode != .simple)
            case .accept(let valid):
                let end = valid.offset.addingReportingOverflow(valid.length)
                #expect(!end.overflow && end.partialValue <= size, "seed=\(seed) \(raw)")
            case .refuse(let refusal):
                #expect(refusal.error != .none)
                #expect(
                    refusal.payloadBytesToSkip + UInt64(seen) == (hasPayload ? raw.length : 0))
                #expect(refusal.payloadBytesToSkip <= ProtocolLimits.skippedPayloadBytesMax)
            case .disconnect(let refusal):
                #expect((raw.type == 1 || hasPayload) && refusal.error == .invalidArgument)
            case .finish:
                #expect(raw.type == 2)
            }
        }
    }

    @Test("random bytes never trap the request decoder", arguments: 1...4)
    func decoder(seed: Int) {
        var random = SplitMix64(seed: UInt64(seed))
        for _ in 0..<2000 {
            var stream = (0..<random.below(64)).map { _ in
                UInt8(truncatingIfNeeded: random.next())
            }
            let header = RequestHeader.allCases[random.below(2)]
            if random.below(2) == 0 { stream = bytes.u32(header.magic).raw(stream).bytes }
            let offset = random.below(stream.count + 1)
            switch RequestDecoder.decode(stream.span, at: offset, header) {
            case .needBytes(let count): #expect(count > stream.count - offset)
            case .request(_, let consumed): #expect(consumed <= stream.count - offset)
            case .badMagic: #expect(stream.count - offset >= 4)
            }
        }
    }

    @Test(
        "mutated transmissions never trap, and splits agree", arguments: 1...8, WireMode.allCases)
    func transmission(seed: Int, mode: WireMode) {
        var random = SplitMix64(seed: UInt64(seed) << 8 | UInt64(mode.requestHeaderBytes))
        for _ in 0..<60 {
            let stream = Self.requests(&random, mode)
            var whole = PureServer()
            whole.receive(stream)
            var pieces = PureServer()
            var rest = stream[...]
            while !rest.isEmpty {
                let count = 1 + random.below(min(rest.count, 64))
                pieces.receive(rest.prefix(count))
                rest = rest.dropFirst(count)
            }
            #expect(pieces.outcome == whole.outcome, "seed=\(seed) \(mode) stream=\(stream)")
        }
    }

    /// A handshake, then plausible requests with some bytes overwritten, cut out or doubled.
    private static func requests(_ random: inout SplitMix64, _ mode: WireMode) -> [UInt8] {
        let handshake = ClientSession.handshakeBytes(mode, contexts: PureServer.contexts)
        var stream: [UInt8] = []
        for _ in 0..<(1 + random.below(6)) {
            var payload = (0..<(random.below(4) == 0 ? random.below(40) : 12)).map { _ in
                UInt8(truncatingIfNeeded: random.next() & 3)
            }
            let command = UInt16(random.below(9))
            let flags = random.below(3) == 0 ? UInt16(1) << random.below(16) : 0
            let hasPayload = mode == .extended ? flags & 32 != 0 : command == WireCommand.write
            if !hasPayload { payload = [] }
            stream += WireRequest(
                command, flags: flags, cookie: random.next(),
                offset: random.below(4) == 0 ? random.next() : UInt64(random.below(5000)),
                length: hasPayload ? UInt64(payload.count) : UInt64(random.below(5000)),
                payload: payload
            ).bytes(mode)
        }
        for _ in 0..<random.below(3) {
            let at = random.below(stream.count)
            switch random.below(3) {
            case 0: stream[at] = UInt8(truncatingIfNeeded: random.next())
            case 1: stream.remove(at: at)
            default: stream.insert(stream[at], at: at)
            }
        }
        return handshake + stream
    }

    /// A plausible stream of options with some bytes overwritten, cut out or doubled.
    private static func stream(_ random: inout SplitMix64) -> [UInt8] {
        if random.below(8) == 0 {
            return (0..<random.below(200)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        }
        var stream = Client.usualFlags.bytes
        for _ in 0..<(1 + random.below(4)) {
            stream += Canned.all[random.below(Canned.all.count)].client.dropFirst(4)
        }
        for _ in 0..<random.below(4) {
            let at = 4 + random.below(stream.count - 4)
            switch random.below(3) {
            case 0: stream[at] = UInt8(truncatingIfNeeded: random.next())
            case 1: stream.remove(at: at)
            default: stream.insert(stream[at], at: at)
            }
            if stream.count <= 5 { break }
        }
        return stream
    }
}
