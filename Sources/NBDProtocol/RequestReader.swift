/// What the driver of a connection does next in the transmission phase.
package enum RequestStep: Equatable, Sendable, BitwiseCopyable {
    /// Nothing was consumed; calling again makes sense once `input` has this many bytes in total.
    case needBytes(atLeast: Int)
    /// Drop `consumed` bytes of an unwanted payload, and call again with the rest.
    case progressed(consumed: Int)
    /// Drop `consumed` bytes and do what the verdict says.
    ///
    /// The payload of an accepted WRITE begins behind them and belongs to the driver.
    case request(RequestVerdict, consumed: Int)
    /// The stream is out of step; the connection cannot go on.
    case badMagic
}

/// The server's side of the transmission phase: requests out of bytes.
///
/// Like the handshake a value without sockets or clock: any split of the byte stream gives the same
/// verdicts. It never asks for more than `inputBytesMax`, and allocates nothing.
package struct RequestReader: Sendable, BitwiseCopyable {
    /// The most bytes that `needBytes` ever asks for.
    package static let inputBytesMax =
        RequestHeader.extended.byteCount + 8 + 4 * ProtocolLimits.contextsMax

    private let header: RequestHeader
    private let rules: RequestRules
    /// Payload of a refused request that is still to come, in bytes.
    private var skipBytes: UInt64 = 0

    /// Whether payload of a refused request is still to come.
    package var isSkipping: Bool { skipBytes > 0 }

    /// A reader of what follows the handshake that agreed on `negotiated`.
    package init(_ negotiated: Negotiated) {
        header = RequestHeader(negotiated.replyMode)
        rules = RequestRules(negotiated)
    }

    /// Decides on the request at the start of `input`, or gets unwanted payload out of its way.
    package mutating func next(_ input: Span<UInt8>) -> RequestStep {
        if skipBytes > 0 {
            guard !input.isEmpty else { return .needBytes(atLeast: 1) }
            let count = Int(min(UInt64(input.count), skipBytes))
            skipBytes -= UInt64(count)
            return .progressed(consumed: count)
        }
        switch RequestDecoder.decode(input, at: 0, header) {
        case .needBytes(let count): return .needBytes(atLeast: count)
        case .badMagic: return .badMagic
        case .request(let raw, let headerBytes):
            let end = headerBytes + rules.payloadBytesToSee(raw)
            guard input.count >= end else { return .needBytes(atLeast: end) }
            let verdict = rules.check(raw, payload: input.extracting(headerBytes..<end))
            if case .refuse(let refusal) = verdict { skipBytes = refusal.payloadBytesToSkip }
            return .request(verdict, consumed: end)
        }
    }
}
