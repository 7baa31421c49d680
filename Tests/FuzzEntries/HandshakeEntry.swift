import NBDProtocol

/// Handshakes, with and without TLS: however the bytes are split, the replies and the end are the
/// same, and nothing that was injected behind STARTTLS is answered.
enum HandshakeEntry {
    private struct Directory: ExportDirectory {
        let exports = [
            ExportDescription(
                name: "vda", description: "first disk", sizeBytes: 1_048_576,
                flags: [.readOnly, .sendFlush, .canMultiConn, .sendCache],
                contexts: ["base:allocation", "qemu:dirty-bitmap:backup-vda"]),
            ExportDescription(
                name: "", sizeBytes: 4096,
                flags: [.sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero]),
        ]

        func listings() -> [ExportListing] {
            exports.map { ExportListing(name: $0.name, description: $0.description) }
        }

        func export(named name: String) -> ExportDescription? {
            exports.first { $0.name == name }
        }
    }

    /// What a peer sees, and where the server stopped reading.
    private struct Outcome: Equatable {
        var reply: [UInt8] = []
        var consumed = 0
        var negotiated: Negotiated?
        var fault: HandshakeFault?
        /// Where STARTTLS ended.
        var securedAt: Int?
        var isOver: Bool { negotiated != nil || fault != nil }
    }

    /// Holds one conversation in several splits of its bytes.
    ///
    /// The first byte chooses what is said about TLS and seeds the schedule of splits, the rest is
    /// the stream. What follows STARTTLS stands for what TLS hands over.
    static func run(_ bytes: [UInt8]) {
        guard let seed = bytes.first else { return }
        let stream = Array(bytes.dropFirst())
        let tls: TLSPolicy =
            switch seed >> 6 {
            case 2: .selective
            case 3: .required
            default: .off
            }
        var conversation = Conversation(tls: tls)
        // Single bytes never bring anything behind STARTTLS, and so tell where it ends.
        let single = conversation.hold(stream) { _ in 1 }
        let secure = single.securedAt
        var state = UInt32(seed) | 1
        let pieces = conversation.hold(stream, cutAt: secure) { left in
            state = state &* 1_103_515_245 &+ 12_345
            return min(left, 1 + Int(state >> 16) % 23)
        }
        let whole = conversation.hold(stream, cutAt: secure) { left in left }
        precondition(whole == single && pieces == single, "a split changes what a peer sees")
        guard let secure, secure < stream.count else { return }
        let injected = conversation.hold(stream) { left in left }
        precondition(injected.fault == .plaintextBehindStartTLS, "injected plaintext was read")
        precondition(single.reply.starts(with: injected.reply), "injected plaintext was answered")
    }

    private struct Conversation {
        let tls: TLSPolicy
        private var buffer: [UInt8] = []
        private var outcome = Outcome()

        init(tls: TLSPolicy) { self.tls = tls }

        /// A whole conversation; a piece never goes beyond `cutAt`.
        mutating func hold(_ stream: [UInt8], cutAt: Int? = nil, piece: (Int) -> Int) -> Outcome {
            var handshake = Handshake(tls: tls)
            buffer = []
            outcome = Outcome()
            var offset = 0
            while offset < stream.count, !outcome.isOver {
                let end = cutAt.map { offset < $0 ? $0 : stream.count } ?? stream.count
                let count = piece(end - offset)
                buffer += stream[offset..<(offset + count)]
                offset += count
                take(&handshake)
            }
            return outcome
        }

        private mutating func take(_ handshake: inout Handshake) {
            while !outcome.isOver {
                let input = buffer
                let step = handshake.advance(
                    input.span, directory: Directory(), reply: &outcome.reply)
                let taken: Int
                switch step {
                case .needBytes(let count):
                    precondition(count > buffer.count && count <= Handshake.inputBytesMax)
                    return
                case .progressed(let consumed):
                    precondition(consumed > 0, "progress without consuming")
                    taken = consumed
                case .startTLS(let consumed):
                    precondition(tls != .off && outcome.securedAt == nil, "STARTTLS out of place")
                    precondition(consumed == buffer.count, "plaintext is left behind STARTTLS")
                    outcome.securedAt = outcome.consumed + consumed
                    handshake.secured()
                    taken = consumed
                case .finished(let consumed, let negotiated):
                    precondition(
                        tls != .required || outcome.securedAt != nil, "an export without TLS")
                    taken = consumed
                    outcome.negotiated = negotiated
                case .close(let consumed, let fault):
                    taken = consumed
                    outcome.fault = fault
                }
                precondition(taken <= buffer.count, "consumed more than there was")
                buffer.removeFirst(taken)
                outcome.consumed += taken
            }
        }
    }
}
