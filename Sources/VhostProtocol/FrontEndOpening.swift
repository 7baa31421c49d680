// A front-end's side of a session, as far as a server needs it that is one to programs of its own.

/// Why a back-end cannot be used.
package struct FrontEndFault: Error, Equatable, Sendable {
    /// What was wrong, with its value.
    package let text: String
    package init(_ text: String) { self.text = text }
}

/// How a front-end hands its memory and one queue over: messages out, replies in.
///
/// A value without I/O. The driver takes the next message, sends it, reads its reply, and goes on
/// until there is none. Each message has a reply, so nothing is believed to have been done that was
/// not.
package struct FrontEndOpening: Sendable {
    /// What goes with a message.
    package enum Passed: Sendable, Equatable {
        case nothing, memory, call, kick
        /// This end of the connection itself.
        case connection
    }

    /// A message to be sent.
    package struct Message: Sendable, Equatable {
        package let bytes: [UInt8]
        package let passed: Passed
    }

    fileprivate enum Step: Int, CaseIterable, Sendable {
        case getFeatures, getProtocolFeatures, setProtocolFeatures, setOwner, getConfig, setFeatures
        case setMemory, setSize, setBase, setAddresses, setCall, setError, setKick, enable, over
    }

    /// Address of the memory for the device and for the front-end.
    package static let memoryAddress: UInt64 = 1 << 40
    /// Longest payload of a reply, in bytes.
    private static let replyBytesMax = 512
    /// Extensions of the protocol without which a back-end is not used.
    private static let extensions: ProtocolFeatures = [.replyAck, .config]
    private static let features: DeviceFeatures = [.version1, .eventIndex, .protocolFeatures]

    private let memoryBytes: UInt64
    private var step = Step.getFeatures
    private var offered: DeviceFeatures = []
    /// The disk's size, in bytes, once that was told.
    package private(set) var sizeBytes: UInt64 = 0
    /// The unit of its requests, in bytes.
    package private(set) var blockBytes: UInt64 = 512
    package var isReadOnly: Bool { offered.contains(.readOnly) }

    /// For memory of so many bytes, with a `SlotQueue` at its start.
    package init(memoryBytes: UInt64) { self.memoryBytes = memoryBytes }

    /// The message that is to be sent now; nil: the queue runs.
    package var message: Message? {
        let queue: UInt32 = 0
        switch step {
        case .getFeatures: return Message(.getFeatures)
        case .getProtocolFeatures: return Message(.getProtocolFeatures)
        case .setProtocolFeatures:
            // Not answered: it says that messages are from now on.
            return Message(
                .setProtocolFeatures, words: [Self.extensions.rawValue], isAnswered: false)
        case .setOwner: return Message(.setOwner)
        case .getConfig:
            return Message(
                .getConfig, numbers: [0, UInt32(ConfigOffset.end), 0],
                room: ConfigOffset.end)
        case .setFeatures: return Message(.setFeatures, words: [chosen.rawValue])
        case .setMemory:
            // One region: where the guest has it, its size, where the front-end has it, and from
            // which byte of its file on.
            return Message(
                .setMemoryTable, numbers: [1, 0],
                words: [Self.memoryAddress, memoryBytes, Self.memoryAddress, 0], passing: .memory)
        case .setSize:
            return Message(.setQueueSize, numbers: [queue, UInt32(SlotQueueLayout.entries)])
        case .setBase: return Message(.setQueueBase, numbers: [queue, 0])
        case .setAddresses:
            let start = Self.memoryAddress
            return Message(
                .setQueueAddresses, numbers: [queue, 0],
                words: [
                    start + SlotQueueLayout.descriptors, start + SlotQueueLayout.used,
                    start + SlotQueueLayout.available, 0,
                ])
        case .setCall: return Message(.setQueueCall, words: [UInt64(queue)], passing: .call)
        case .setError:
            // The back-end has the connection's other end as well then, so the connection lasts as
            // long as it does, whatever becomes of this process: a back-end whose front-end is gone
            // with requests in flight may end itself, and lose what it has answered.
            return Message(.setQueueError, words: [UInt64(queue)], passing: .connection)
        case .setKick: return Message(.setQueueKick, words: [UInt64(queue)], passing: .kick)
        case .enable: return Message(.setQueueEnable, numbers: [queue, 1])
        case .over: return nil
        }
    }

    /// Whether the message has a reply.
    package var awaitsReply: Bool { step != .setProtocolFeatures }

    /// A message without a reply was sent.
    package mutating func sent() { step = step.next }

    private var chosen: DeviceFeatures {
        var chosen = Self.features
        if offered.contains(.blockSize) { chosen.insert(.blockSize) }
        if offered.contains(.flush) { chosen.insert(.flush) }
        if offered.contains(.readOnly) { chosen.insert(.readOnly) }
        return chosen
    }

    /// The message that stops the queue: nothing more is taken from it, what was taken is finished.
    ///
    /// Its reply need not be read.
    package static var stopping: [UInt8] { Message(.getQueueBase, numbers: [0, 0]).bytes }

    // MARK: Replies

    /// How many bytes of payload follow a reply's header.
    package func payloadBytes(_ header: Span<UInt8>) throws(FrontEndFault) -> Int {
        guard header.count == MessageHeader.byteCount else {
            throw FrontEndFault("a header of \(header.count) bytes")
        }
        let request = header.littleEndian(UInt32.self, at: 0)
        let flags = header.littleEndian(UInt32.self, at: 4)
        let count = header.littleEndian(UInt32.self, at: 8)
        guard request == code?.rawValue else {
            throw FrontEndFault("it answers request \(request), \(name) was asked")
        }
        guard flags & HeaderFlags.versionMask == HeaderFlags.version,
            flags & HeaderFlags.reply != 0
        else { throw FrontEndFault("it answers \(name) with flags 0x\(String(flags, radix: 16))") }
        guard count <= Self.replyBytesMax else {
            throw FrontEndFault("it answers \(name) with \(count) bytes")
        }
        return Int(count)
    }

    /// The reply has come.
    package mutating func answered(_ payload: Span<UInt8>) throws(FrontEndFault) {
        if step == .getConfig {
            try takeConfig(payload)
        } else {
            guard payload.count == PayloadBytes.word else {
                throw FrontEndFault("it answers \(name) with \(payload.count) bytes")
            }
            try take(payload.littleEndian(UInt64.self, at: 0))
        }
        step = step.next
    }

    private mutating func take(_ word: UInt64) throws(FrontEndFault) {
        switch step {
        case .getFeatures:
            offered = DeviceFeatures(rawValue: word)
            try need(Self.features.rawValue, in: word)
        case .getProtocolFeatures: try need(Self.extensions.rawValue, in: word)
        default:
            guard word == 0 else { throw FrontEndFault("it refuses \(name) with \(word)") }
        }
    }

    private func need(_ bits: UInt64, in word: UInt64) throws(FrontEndFault) {
        guard word & bits == bits else {
            throw FrontEndFault(
                "it lacks features 0x\(String(bits & ~word, radix: 16)) (\(name))")
        }
    }

    private mutating func takeConfig(_ payload: Span<UInt8>) throws(FrontEndFault) {
        guard payload.count == PayloadBytes.configHeader + ConfigOffset.end else {
            throw FrontEndFault("it answers \(name) with \(payload.count) bytes")
        }
        let fields = PayloadBytes.configHeader
        let sectors = payload.littleEndian(UInt64.self, at: fields + ConfigOffset.capacity)
        guard sectors <= UInt64.max / BlockShape.sectorBytes else {
            throw FrontEndFault("it has \(sectors) sectors")
        }
        sizeBytes = sectors * BlockShape.sectorBytes
        if offered.contains(.blockSize) {
            let bytes = payload.littleEndian(UInt32.self, at: fields + ConfigOffset.blockSize)
            guard bytes >= 512, bytes.nonzeroBitCount == 1 else {
                throw FrontEndFault("its blocks have \(bytes) bytes")
            }
            blockBytes = UInt64(bytes)
        }
    }

    private var name: String { code.map(\.description) ?? "nothing" }

    private var code: RequestCode? {
        switch step {
        case .getFeatures: .getFeatures
        case .getProtocolFeatures: .getProtocolFeatures
        case .setProtocolFeatures: .setProtocolFeatures
        case .setOwner: .setOwner
        case .getConfig: .getConfig
        case .setFeatures: .setFeatures
        case .setMemory: .setMemoryTable
        case .setSize: .setQueueSize
        case .setBase: .setQueueBase
        case .setAddresses: .setQueueAddresses
        case .setCall: .setQueueCall
        case .setError: .setQueueError
        case .setKick: .setQueueKick
        case .enable: .setQueueEnable
        case .over: nil
        }
    }
}

extension FrontEndOpening.Step {
    fileprivate var next: Self { Self(rawValue: rawValue + 1) ?? .over }
}

extension FrontEndOpening.Message {
    /// Numbers of 32 bits, then words of 64, then `room` bytes of zeros.
    fileprivate init(
        _ code: RequestCode, numbers: [UInt32] = [], words: [UInt64] = [], room: Int = 0,
        passing: FrontEndOpening.Passed = .nothing, isAnswered: Bool = true
    ) {
        let count = numbers.count * 4 + words.count * 8 + room
        var bytes: [UInt8] = []
        bytes.appendLittleEndian(code.rawValue)
        // Those that have a reply of their own have no other.
        let hasOwn: Set<RequestCode> = [
            .getFeatures, .getProtocolFeatures, .getConfig, .getQueueBase,
        ]
        let wants = isAnswered && !hasOwn.contains(code)
        bytes.appendLittleEndian(HeaderFlags.version | (wants ? HeaderFlags.needReply : 0))
        bytes.appendLittleEndian(UInt32(count))
        for number in numbers { bytes.appendLittleEndian(number) }
        for word in words { bytes.appendLittleEndian(word) }
        bytes.append(contentsOf: [UInt8](repeating: 0, count: room))
        self.bytes = bytes
        passed = passing
    }
}
