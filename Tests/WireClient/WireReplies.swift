/// One extent of a block status reply.
package struct WireExtent: Sendable, Equatable, CustomStringConvertible {
    package let length: UInt64
    package let flags: UInt64
    package init(_ length: UInt64, _ flags: UInt64) {
        self.length = length
        self.flags = flags
    }
    package var description: String { "\(length):\(flags)" }
}

/// The whole answer to one request.
package struct WireReply: Sendable, Equatable {
    package let cookie: UInt64
    /// The error's number; 0 is success.
    package var error: UInt32 = 0
    package var text = ""
    /// Where in the export the error happened, if the server said so.
    package var place: UInt64?
    /// The bytes of a READ.
    package var data: [UInt8] = []
    /// The extents of a BLOCK_STATUS, by context id.
    package var extents: [UInt32: [WireExtent]] = [:]
    package var chunkCount = 0

    init(cookie: UInt64) { self.cookie = cookie }
}

/// The client's side of the transmission phase: requests out, replies in.
///
/// As strict as the protocol allows: what a server may not send throws.
package struct WireTransmission: Sendable {
    /// A request without its last chunk.
    private struct Pending: Sendable {
        let request: WireRequest
        var reply: WireReply
        /// What of a READ has arrived, in order of arrival.
        var parts: [Range<UInt64>] = []
    }

    package let agreement: WireAgreement
    private var input: [UInt8]
    private var pending: [UInt64: Pending] = [:]

    /// `received` is what came behind the handshake.
    package init(_ agreement: WireAgreement, received: [UInt8] = []) {
        self.agreement = agreement
        input = received
    }

    /// Requests without a whole answer.
    package var pendingCount: Int { pending.count }

    /// Notes a request and returns what is to be sent.
    package mutating func send(_ request: WireRequest) -> [UInt8] {
        precondition(pending[request.cookie] == nil, "a cookie is used once at a time")
        var reply = WireReply(cookie: request.cookie)
        if request.command == WireCommand.read, request.length < 1 << 32 {
            reply.data = [UInt8](repeating: 0xee, count: Int(request.length))
        }
        if request.command != WireCommand.disconnect {
            pending[request.cookie] = Pending(request: request, reply: reply)
        }
        return request.bytes(agreement.mode)
    }

    package mutating func receive(_ bytes: [UInt8]) { input += bytes }

    /// The next request that is wholly answered.
    package mutating func next() throws(WireViolation) -> WireReply? {
        while input.count >= 16 {
            let before = input.count
            let magic = input.number(UInt32.self, at: 0)
            let reply: WireReply? =
                switch (agreement.mode, magic) {
                case (.simple, 0x6744_6698), (.structured, 0x6744_6698): try simple()
                case (.structured, 0x668e_33ef): try chunk(headerBytes: 20)
                case (.extended, 0x6e8a_278c): try chunk(headerBytes: 32)
                default: throw WireViolation("magic \(magic) in \(agreement.mode) mode")
                }
            if let reply { return reply }
            if input.count == before { return nil }
        }
        return nil
    }

    private func pending(_ cookie: UInt64) throws(WireViolation) -> Pending {
        guard let found = pending[cookie] else {
            throw WireViolation("a reply to no request: cookie \(cookie)")
        }
        return found
    }

    private mutating func simple() throws(WireViolation) -> WireReply? {
        let cookie = input.number(UInt64.self, at: 8)
        var found = try pending(cookie)
        found.reply.error = input.number(UInt32.self, at: 4)
        let isRead = found.request.command == WireCommand.read
        if agreement.mode == .structured, isRead {
            throw WireViolation("a simple reply to a structured READ")
        }
        if found.request.command == WireCommand.blockStatus, found.reply.error == 0 {
            throw WireViolation("BLOCK_STATUS succeeded without extents")
        }
        let dataBytes = isRead && found.reply.error == 0 ? Int(found.request.length) : 0
        guard input.count >= 16 + dataBytes else { return nil }
        found.reply.data = Array(input[16..<(16 + dataBytes)])
        input.removeFirst(16 + dataBytes)
        pending[cookie] = nil
        return found.reply
    }

    private mutating func chunk(headerBytes: Int) throws(WireViolation) -> WireReply? {
        guard input.count >= headerBytes else { return nil }
        let isExtended = headerBytes == 32
        let length =
            isExtended
            ? input.number(UInt64.self, at: 24) : UInt64(input.number(UInt32.self, at: 16))
        // A client library gives up at 64 MiB and a header.
        guard length <= 64 << 20 | 8 else { throw WireViolation("a chunk of \(length) bytes") }
        guard input.count >= headerBytes + Int(length) else { return nil }
        let flags = input.number(UInt16.self, at: 4)
        let type = input.number(UInt16.self, at: 6)
        let cookie = input.number(UInt64.self, at: 8)
        var found = try pending(cookie)
        if isExtended, input.number(UInt64.self, at: 16) != found.request.offset {
            throw WireViolation("the request's offset is not repeated")
        }
        guard flags <= 1 else { throw WireViolation("chunk flags \(flags)") }
        let body = Array(input[headerBytes..<(headerBytes + Int(length))])
        input.removeFirst(headerBytes + Int(length))
        found.reply.chunkCount += 1
        try take(type, body, flags == 1, &found)
        if flags == 1 {
            try checkWhole(found)
            pending[cookie] = nil
            return found.reply
        }
        pending[cookie] = found
        return nil
    }

    private func take(
        _ type: UInt16, _ body: [UInt8], _ isDone: Bool, _ found: inout Pending
    ) throws(WireViolation) {
        let command = found.request.command
        switch type {
        case 0:
            guard body.isEmpty, isDone else { throw WireViolation("an odd NONE chunk") }
        case 1 where command == WireCommand.read:
            guard body.count >= 9 else { throw WireViolation("a data chunk without data") }
            try place(Array(body.dropFirst(8)), at: body.number(UInt64.self, at: 0), &found)
        case 2 where command == WireCommand.read:
            guard body.count == 12, body.number(UInt32.self, at: 8) > 0 else {
                throw WireViolation("an odd hole chunk")
            }
            let zeros = [UInt8](repeating: 0, count: Int(body.number(UInt32.self, at: 8)))
            try place(zeros, at: body.number(UInt64.self, at: 0), &found)
        case 5 where command == WireCommand.blockStatus && agreement.mode == .structured:
            try extents(body, headerBytes: 4, &found)
        case 6 where command == WireCommand.blockStatus && agreement.mode == .extended:
            try extents(body, headerBytes: 8, &found)
        case 0x8001, 0x8002:
            try error(body, hasPlace: type == 0x8002, &found)
        default:
            throw WireViolation("chunk type \(type) for command \(command)")
        }
    }

    private func place(
        _ bytes: [UInt8], at offset: UInt64, _ found: inout Pending
    ) throws(WireViolation) {
        let start = found.request.offset
        let range = offset..<(offset + UInt64(bytes.count))
        guard range.lowerBound >= start, range.upperBound <= start + found.request.length else {
            throw WireViolation("data outside the request")
        }
        guard !found.parts.contains(where: { $0.overlaps(range) }) else {
            throw WireViolation("data came twice")
        }
        if found.request.flags & WireFlag.df != 0, !found.parts.isEmpty {
            throw WireViolation("an unfragmented READ came in pieces")
        }
        found.parts.append(range)
        let first = Int(offset - start)
        found.reply.data.replaceSubrange(first..<(first + bytes.count), with: bytes)
    }

    private func extents(
        _ body: [UInt8], headerBytes: Int, _ found: inout Pending
    ) throws(WireViolation) {
        let isExtended = headerBytes == 8
        let extentBytes = isExtended ? 16 : 8
        guard body.count > headerBytes, (body.count - headerBytes).isMultiple(of: extentBytes)
        else { throw WireViolation("a status chunk of \(body.count) bytes") }
        let count = (body.count - headerBytes) / extentBytes
        if isExtended, Int(body.number(UInt32.self, at: 4)) != count {
            throw WireViolation("the extents are miscounted")
        }
        guard count <= 1 << 20 else { throw WireViolation("\(count) extents") }
        let id = body.number(UInt32.self, at: 0)
        guard asked(found.request).contains(id), found.reply.extents[id] == nil else {
            throw WireViolation(
                "an answer for context \(id) that was not asked for, or a second one")
        }
        let all = (0..<count).map { index in
            let at = headerBytes + index * extentBytes
            return isExtended
                ? WireExtent(body.number(UInt64.self, at: at), body.number(UInt64.self, at: at + 8))
                : WireExtent(
                    UInt64(body.number(UInt32.self, at: at)),
                    UInt64(body.number(UInt32.self, at: at + 4)))
        }
        try check(all, found.request)
        found.reply.extents[id] = all
    }

    private func asked(_ request: WireRequest) -> [UInt32] {
        request.namedContexts ?? agreement.contexts.map(\.id)
    }

    private func check(_ extents: [WireExtent], _ request: WireRequest) throws(WireViolation) {
        guard extents.allSatisfy({ $0.length > 0 && $0.flags < 1 << 32 }) else {
            throw WireViolation("an empty extent, or one with high flags")
        }
        let allButLast = extents.dropLast().reduce(0) { $0 + $1.length }
        let all = allButLast + (extents.last?.length ?? 0)
        guard allButLast < request.effectLength, request.offset + all <= agreement.sizeBytes else {
            throw WireViolation("extents reach too far")
        }
        if request.flags & WireFlag.reqOne != 0 {
            guard extents.count == 1, all <= request.effectLength else {
                throw WireViolation("more than the one extent that was asked for")
            }
        }
    }

    private func error(
        _ body: [UInt8], hasPlace: Bool, _ found: inout Pending
    ) throws(WireViolation) {
        let placeBytes = hasPlace ? 8 : 0
        guard body.count >= 6 + placeBytes,
            body.count == 6 + Int(body.number(UInt16.self, at: 4)) + placeBytes,
            body.number(UInt32.self, at: 0) != 0
        else { throw WireViolation("an odd error chunk") }
        let textBytes = body[6..<(body.count - placeBytes)]
        if found.reply.error == 0 {
            found.reply.error = body.number(UInt32.self, at: 0)
            found.reply.text = String(decoding: textBytes, as: UTF8.self)
        }
        if hasPlace { found.reply.place = body.number(UInt64.self, at: body.count - 8) }
    }

    private func checkWhole(_ found: Pending) throws(WireViolation) {
        guard found.reply.error == 0 else { return }
        if found.request.command == WireCommand.read {
            let covered = found.parts.reduce(0) { $0 + UInt64($1.count) }
            guard covered == found.request.length else {
                throw WireViolation("a READ got \(covered) bytes of \(found.request.length)")
            }
        }
        if found.request.command == WireCommand.blockStatus {
            guard Set(found.reply.extents.keys) == Set(asked(found.request)) else {
                throw WireViolation("a context was not answered")
            }
        }
    }
}
