import NBDProtocol
import Testing

/// The pure parts of the server joined to a disk in memory: everything but rings and files.
///
/// Keeps bytes that were not consumed, as a ring does, and answers at once and in order.
struct PureServer {
    /// How the connection ended.
    enum End: Equatable {
        case open
        /// The client said so.
        case finished
        /// The server hung up after its last reply.
        case hungUp
        case outOfStep
        case handshake(HandshakeFault)
    }

    /// What a split must not change.
    struct Outcome: Equatable {
        var output: [UInt8] = []
        var end = End.open
        var content: [UInt8]
    }

    static let sizeBytes: UInt64 = 1 << 44
    /// The only part of the disk that is not zeros.
    static let contentBytes = 4096
    static let contexts = [
        "base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two",
    ]
    static let directory = FixedDirectory(exports: [
        ExportDescription(
            name: "vda", sizeBytes: sizeBytes,
            flags: [.sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendCache, .canMultiConn],
            contexts: contexts)
    ])

    private(set) var outcome: Outcome
    private var handshake = Handshake()
    private var reader: RequestReader?
    private var replies = ReplyEncoder(.simple)
    private var negotiated: Negotiated?
    private var buffer: [UInt8] = []
    /// A WRITE whose payload is still to come.
    private var writing: ValidRequest?

    init() {
        outcome = Outcome(content: (0..<Self.contentBytes).map { UInt8(truncatingIfNeeded: $0) })
        outcome.output = Handshake.greeting
    }

    mutating func receive(_ piece: some Collection<UInt8>) {
        buffer += piece
        while outcome.end == .open, step() {}
    }

    /// False when more input is needed.
    private mutating func step() -> Bool {
        // A span of `buffer` itself would borrow all of `self`.
        let input = buffer
        if negotiated == nil { return negotiate(input.span) }
        if let request = writing {
            guard buffer.count >= Int(request.length) else { return false }
            write(request, Array(buffer.prefix(Int(request.length))))
            buffer.removeFirst(Int(request.length))
            writing = nil
            return true
        }
        guard let step = reader?.next(input.span) else { return false }
        switch step {
        case .needBytes(let count):
            #expect(count > input.count && count <= RequestReader.inputBytesMax)
            return false
        case .progressed(let consumed):
            #expect(consumed > 0)
            buffer.removeFirst(consumed)
        case .badMagic: outcome.end = .outOfStep
        case .request(let verdict, let consumed):
            buffer.removeFirst(consumed)
            act(verdict)
        }
        return true
    }

    private mutating func negotiate(_ input: Span<UInt8>) -> Bool {
        let step = handshake.advance(input, directory: Self.directory, reply: &outcome.output)
        switch step {
        case .needBytes: return false
        case .progressed(let consumed): buffer.removeFirst(consumed)
        case .startTLS: Issue.record("TLS is not offered here")
        case .finished(let consumed, let result):
            buffer.removeFirst(consumed)
            negotiated = result
            reader = RequestReader(result)
            replies = ReplyEncoder(result.replyMode)
        case .close(_, let fault): outcome.end = .handshake(fault)
        }
        return true
    }

    private mutating func act(_ verdict: RequestVerdict) {
        switch verdict {
        case .finish: outcome.end = .finished
        case .disconnect(let refusal):
            refuse(refusal)
            outcome.end = .hungUp
        case .refuse(let refusal): refuse(refusal)
        case .acceptStatus(let request, let asked): status(request, asked)
        case .accept(let request):
            switch request.command {
            case .read: read(request)
            case .write: writing = request
            case .trim, .writeZeroes:
                write(request, nil)
            case .flush, .cache: succeed(request)
            case .blockStatus, .disconnect: Issue.record("\(request) has a verdict of its own")
            }
        }
    }

    /// Appends what `encode` writes.
    private mutating func reply(_ encode: (ReplyEncoder, inout MutableRawSpan) -> Int) {
        var memory = [UInt8](repeating: 0, count: 4096)
        var span = memory.mutableSpan
        // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        let count = encode(replies, &raw)
        outcome.output += memory.prefix(count)
    }

    private mutating func refuse(_ refusal: Refusal) {
        reply { $0.error(refusal.error, refusal.echo, text: refusal.text, into: &$1, at: 0) }
    }

    private mutating func succeed(_ request: ValidRequest) {
        let isRead = request.command == .read
        reply { $0.success(request.echo, isRead: isRead, into: &$1, at: 0) }
    }

    private mutating func read(_ request: ValidRequest) {
        if request.length == 0 { return succeed(request) }
        var data = [UInt8](repeating: 0, count: Int(request.length))
        let end = min(request.offset + request.length, UInt64(Self.contentBytes))
        if request.offset < end {
            let part = outcome.content[Int(request.offset)..<Int(end)]
            data.replaceSubrange(0..<part.count, with: part)
        }
        // In two chunks where that is allowed.
        let isWhole = replies.mode == .simple || request.flags.contains(.df) || data.count < 2
        let cut = isWhole ? data.count : data.count / 2
        for range in [0..<cut, cut..<data.count] where !range.isEmpty {
            let place = request.offset + UInt64(range.lowerBound)
            reply {
                $0.data(
                    request.echo, place: place, dataBytes: UInt32(range.count),
                    done: range.upperBound == data.count, into: &$1, at: 0)
            }
            outcome.output += data[range]
        }
    }

    private mutating func write(_ request: ValidRequest, _ bytes: [UInt8]?) {
        for index in 0..<min(request.length, UInt64(Self.contentBytes)) {
            let at = request.offset + index
            guard at < UInt64(Self.contentBytes) else { break }
            outcome.content[Int(at)] = bytes?[Int(index)] ?? 0
        }
        succeed(request)
    }

    /// The extents of each context: some that 32 bits can say, and what is left.
    static func extents(_ id: UInt32, from offset: UInt64, to end: UInt64) -> [(UInt64, UInt32)] {
        let first = min(end - offset, UInt64(id + 1) << 16)
        let rest = end - offset - first
        if rest == 0 { return [(first, 0)] }
        return [(first, 0), (rest, id + 1)]
    }

    private mutating func status(_ request: ValidRequest, _ asked: ContextSet) {
        // Without long extents a reply ends early, as a server may.
        let end = request.offset + request.length
        let reach = replies.hasLongExtents ? end : min(end, request.offset + 1 << 31)
        for context in negotiated?.contexts ?? [] where asked.contains(context.id) {
            let all = Self.extents(context.id, from: request.offset, to: reach)
            let extents = request.flags.contains(.reqOne) ? Array(all.prefix(1)) : all
            let isLast = !asked.containsAny(above: context.id)
            reply { replies, memory in
                var at = replies.status(
                    request.echo, contextID: context.id, extentCount: extents.count, done: isLast,
                    into: &memory, at: 0)
                for (length, flags) in extents {
                    at += replies.extent(length: length, flags: flags, into: &memory, at: at)
                }
                return at
            }
        }
    }
}
