import NBDProtocol
import Testing

/// A directory of fixed exports.
struct FixedDirectory: ExportDirectory {
    var exports: [ExportDescription]

    func listings() -> [ExportListing] {
        exports.map { ExportListing(name: $0.name, description: $0.description) }
    }

    func export(named name: String) -> ExportDescription? {
        exports.first { $0.name == name }
    }

    /// A read-only export with a bitmap and a writable one without.
    static let usual = FixedDirectory(exports: [
        ExportDescription(
            name: "vda", description: "first disk", sizeBytes: 1_048_576,
            flags: [.readOnly, .sendFlush, .canMultiConn, .sendCache],
            contexts: ["base:allocation", "qemu:dirty-bitmap:backup-vda"]),
        ExportDescription(
            name: "vdb", sizeBytes: 4096,
            flags: [.sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero]),
    ])

    /// HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN, SEND_CACHE.
    static let vdaFlags: UInt16 = 0x0507
    /// The same with SEND_DF.
    static let vdaStructuredFlags: UInt16 = 0x0587
    /// The same with BLOCK_STATUS_PAYLOAD, which goes with extended headers.
    static let vdaExtendedFlags: UInt16 = 0x1587
    /// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_FAST_ZERO.
    static let vdbFlags: UInt16 = 0x086d
}

/// How a conversation ended.
enum Ending: Equatable {
    /// The server waits for more.
    case open
    case transmission(Negotiated)
    case closed(HandshakeFault)
    /// TLS begins; what comes now is not plaintext.
    case securing
}

/// What a peer saw of a conversation, and how far the server read.
struct Outcome: Equatable {
    var reply: [UInt8] = []
    var consumed = 0
    var ending = Ending.open
}

/// Plays the driver: keeps unconsumed bytes and calls the handshake until it wants more.
struct Conversation {
    private var handshake: Handshake
    private var buffer: [UInt8] = []
    private var wanted = 0
    private let directory: FixedDirectory
    /// Whether to call again before as many bytes are there as the handshake asked for.
    private let isImpatient: Bool
    private(set) var outcome = Outcome()

    init(
        directory: FixedDirectory = .usual, tls: TLSPolicy = .off, isImpatient: Bool = false
    ) {
        handshake = Handshake(tls: tls)
        self.directory = directory
        self.isImpatient = isImpatient
    }

    mutating func receive(_ piece: some Collection<UInt8>) {
        buffer += piece
        guard outcome.ending == .open else { return }
        if buffer.count < wanted && !isImpatient { return }
        while outcome.ending == .open {
            // A span of `buffer` itself would borrow all of `self` while the handshake changes.
            let input = buffer
            let step = handshake.advance(
                input.span, directory: directory, reply: &outcome.reply)
            switch step {
            case .needBytes(let count):
                #expect(count > buffer.count, "asked for bytes that are there")
                #expect(count <= Handshake.inputBytesMax)
                wanted = count
                return
            case .progressed(let consumed):
                #expect(consumed > 0, "progress without consuming")
                drop(consumed)
            case .finished(let consumed, let negotiated):
                drop(consumed)
                outcome.ending = .transmission(negotiated)
            case .startTLS(let consumed):
                drop(consumed)
                #expect(buffer.isEmpty, "plaintext is left behind STARTTLS")
                outcome.ending = .securing
            case .close(let consumed, let fault):
                drop(consumed)
                outcome.ending = .closed(fault)
            }
        }
    }

    /// TLS stands: what comes now was sealed.
    mutating func secured() {
        #expect(outcome.ending == .securing)
        handshake.secured()
        buffer = []
        outcome = Outcome()
    }

    private mutating func drop(_ count: Int) {
        #expect(count <= buffer.count, "consumed more than there was")
        buffer.removeFirst(min(count, buffer.count))
        outcome.consumed += count
        wanted = 0
    }

    /// The outcome of `stream` in one piece.
    static func run(
        _ stream: [UInt8], directory: FixedDirectory = .usual, tls: TLSPolicy = .off
    ) -> Outcome {
        var conversation = Conversation(directory: directory, tls: tls)
        conversation.receive(stream)
        return conversation.outcome
    }

    /// Checks that no way to split `stream` changes the outcome.
    static func expectSplitsAgree(
        _ stream: [UInt8], directory: FixedDirectory = .usual, tls: TLSPolicy = .off,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let whole = run(stream, directory: directory, tls: tls)
        for isImpatient in [false, true] {
            for cut in 0...stream.count {
                var conversation = Conversation(
                    directory: directory, tls: tls, isImpatient: isImpatient)
                conversation.receive(stream[..<cut])
                conversation.receive(stream[cut...])
                if conversation.outcome != whole {
                    Issue.record("cut at \(cut) differs", sourceLocation: sourceLocation)
                    return
                }
            }
            var byteByByte = Conversation(
                directory: directory, tls: tls, isImpatient: isImpatient)
            for byte in stream { byteByByte.receive(CollectionOfOne(byte)) }
            #expect(byteByByte.outcome == whole, sourceLocation: sourceLocation)
        }
    }
}
