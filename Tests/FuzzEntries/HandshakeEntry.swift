import NBDProtocol

/// Handshakes: however the bytes are split, the replies and the end are the same.
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
        var isOver: Bool { negotiated != nil || fault != nil }
    }

    /// The first byte seeds the schedule of splits, the rest is the stream.
    static func run(_ bytes: [UInt8]) {
        guard let seed = bytes.first else { return }
        let stream = Array(bytes.dropFirst())
        let whole = converse(stream) { _ in stream.count }
        var state = UInt32(seed) | 1
        let pieces = converse(stream) { left in
            state = state &* 1_103_515_245 &+ 12_345
            return min(left, 1 + Int(state >> 16) % 23)
        }
        precondition(whole == pieces, "a split changes what a peer sees")
    }

    private static func converse(_ stream: [UInt8], piece: (Int) -> Int) -> Outcome {
        var handshake = Handshake()
        var outcome = Outcome()
        var buffer: [UInt8] = []
        var rest = stream[...]
        while !rest.isEmpty, !outcome.isOver {
            let count = piece(rest.count)
            buffer += rest.prefix(count)
            rest = rest.dropFirst(count)
            take(&handshake, &buffer, &outcome)
        }
        return outcome
    }

    private static func take(
        _ handshake: inout Handshake, _ buffer: inout [UInt8], _ outcome: inout Outcome
    ) {
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
            case .startTLS: preconditionFailure("TLS is not offered here")
            case .finished(let consumed, let negotiated):
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
