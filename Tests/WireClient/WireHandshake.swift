/// What a handshake agreed on.
package struct WireAgreement: Sendable, Equatable {
    package var mode: WireMode
    package var sizeBytes: UInt64
    package var flags: UInt16
    /// Ids and names of the selected contexts, in the order in which the server gave them.
    package var contexts: [Context] = []

    package struct Context: Sendable, Equatable {
        package let id: UInt32
        package let name: String
    }

    /// The id of a selected context.
    package func id(_ name: String) throws(WireViolation) -> UInt32 {
        guard let found = contexts.first(where: { $0.name == name }) else {
            throw WireViolation("context \(name) was not selected")
        }
        return found.id
    }
}

/// The client's side of a handshake: bytes in, bytes out.
///
/// Every option is sent without waiting for the answer to the one before.
package struct WireHandshake: Sendable {
    private static let structuredReply: UInt32 = 8
    private static let extendedHeaders: UInt32 = 11
    private static let setContexts: UInt32 = 10
    private static let go: UInt32 = 7

    private let mode: WireMode
    private var input: [UInt8] = []
    private var sawGreeting = false
    private var agreement: WireAgreement
    private var isDone = false
    /// The client's flags and options.
    private let message: [UInt8]

    package init(export: String, mode: WireMode, contexts: [String] = []) {
        self.mode = mode
        agreement = WireAgreement(mode: mode, sizeBytes: 0, flags: 0)
        var message: [UInt8] = []
        message.put(3 as UInt32)
        if mode == .structured { message += Self.option(Self.structuredReply) }
        if mode == .extended { message += Self.option(Self.extendedHeaders) }
        if !contexts.isEmpty {
            var payload = Self.counted(export)
            payload.put(UInt32(contexts.count))
            for context in contexts { payload += Self.counted(context) }
            message += Self.option(Self.setContexts, payload)
        }
        var payload = Self.counted(export)
        payload.put(0 as UInt16)
        message += Self.option(Self.go, payload)
        self.message = message
    }

    private static func option(_ code: UInt32, _ payload: [UInt8] = []) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.put(0x4948_4156_454F_5054 as UInt64)
        bytes.put(code)
        bytes.put(UInt32(payload.count))
        return bytes + payload
    }

    private static func counted(_ text: String) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.put(UInt32(text.utf8.count))
        return bytes + Array(text.utf8)
    }

    /// What the client says once the greeting is there; nothing else is ever sent.
    package mutating func receive(
        _ bytes: [UInt8]
    ) throws(WireViolation) -> (send: [UInt8], agreement: WireAgreement?) {
        input += bytes
        var send: [UInt8] = []
        if !sawGreeting {
            guard input.count >= 18 else { return ([], nil) }
            guard input.number(UInt64.self, at: 0) == 0x4e42_444d_4147_4943,
                input.number(UInt64.self, at: 8) == 0x4948_4156_454F_5054,
                input.number(UInt16.self, at: 16) == 3
            else { throw WireViolation("no fixed newstyle greeting") }
            input.removeFirst(18)
            sawGreeting = true
            send = message
        }
        while !isDone, let reply = try nextReply() { try take(reply) }
        return (send, isDone ? agreement : nil)
    }

    /// Bytes received behind the handshake's end; the transmission phase begins with them.
    package var rest: [UInt8] { input }

    private struct Reply {
        let option: UInt32
        let type: UInt32
        let data: [UInt8]
    }

    private mutating func nextReply() throws(WireViolation) -> Reply? {
        guard input.count >= 20 else { return nil }
        guard input.number(UInt64.self, at: 0) == 0x0003_e889_0455_65a9 else {
            throw WireViolation("an option's reply has the wrong magic")
        }
        let end = 20 + Int(input.number(UInt32.self, at: 16))
        guard input.count >= end else { return nil }
        let reply = Reply(
            option: input.number(UInt32.self, at: 8), type: input.number(UInt32.self, at: 12),
            data: Array(input[20..<end]))
        input.removeFirst(end)
        return reply
    }

    private mutating func take(_ reply: Reply) throws(WireViolation) {
        if reply.type >= 1 << 31 {
            let text = String(decoding: reply.data, as: UTF8.self)
            throw WireViolation("option \(reply.option) was refused: \(text)")
        }
        switch (reply.option, reply.type) {
        case (Self.go, 1): isDone = true
        case (_, 1): break
        case (Self.setContexts, 4):
            agreement.contexts.append(
                WireAgreement.Context(
                    id: reply.data.number(UInt32.self, at: 0),
                    name: String(decoding: reply.data.dropFirst(4), as: UTF8.self)))
        case (Self.go, 3):
            guard reply.data.number(UInt16.self, at: 0) == 0 else { return }
            guard reply.data.count == 12 else { throw WireViolation("an odd EXPORT info") }
            agreement.sizeBytes = reply.data.number(UInt64.self, at: 2)
            agreement.flags = reply.data.number(UInt16.self, at: 10)
        default: throw WireViolation("reply type \(reply.type) to option \(reply.option)")
        }
    }
}
