// Messages as they arrive on the socket, and how they can be malformed.

/// A message header that has been checked.
package struct MessageHeader: Equatable, Sendable, BitwiseCopyable {
    /// Size of a header, in bytes.
    package static let byteCount = 12

    /// The request's number, known or not.
    package let request: UInt32
    /// Whether the front-end wants an acknowledgement, if REPLY_ACK is negotiated.
    package let needsReply: Bool
    /// Size of the payload in bytes; at most `VhostLimits.payloadBytesMax`.
    package let payloadBytes: Int

    /// Decodes the header at the start of `input`, which holds at least `byteCount` bytes.
    ///
    /// After a fault the stream is out of step and the session cannot go on.
    package init(_ input: Span<UInt8>) throws(MessageFault) {
        let flags = input.littleEndian(UInt32.self, at: 4)
        let size = input.littleEndian(UInt32.self, at: 8)
        guard flags & HeaderFlags.versionMask == HeaderFlags.version else {
            throw .wrongVersion(flags & HeaderFlags.versionMask)
        }
        guard flags & ~(HeaderFlags.versionMask | HeaderFlags.needReply) == 0 else {
            throw .unknownFlags(flags)
        }
        guard size <= UInt32(VhostLimits.payloadBytesMax) else { throw .payloadTooLong(size) }
        request = input.littleEndian(UInt32.self, at: 0)
        needsReply = flags & HeaderFlags.needReply != 0
        payloadBytes = Int(size)
    }

    /// The bytes of a reply.
    static func reply(to request: UInt32, payload: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendLittleEndian(request)
        bytes.appendLittleEndian(HeaderFlags.version | HeaderFlags.reply)
        bytes.appendLittleEndian(UInt32(payload.count))
        return bytes + payload
    }
}

/// How a message is malformed.
package enum MessageFault: Error, Equatable, Sendable, BitwiseCopyable {
    /// An unknown protocol version.
    case wrongVersion(UInt32)
    /// An unknown header flag, or the reply flag.
    case unknownFlags(UInt32)
    /// A payload over `VhostLimits.payloadBytesMax`.
    case payloadTooLong(UInt32)
    /// An unsupported request.
    case unknownRequest(UInt32)
    /// A payload of the wrong size.
    case wrongPayloadSize(RequestCode, byteCount: Int)
    /// The wrong number of descriptors.
    case wrongDescriptorCount(RequestCode, count: Int)
    /// No regions, or more than a message may have.
    case wrongRegionCount(UInt32)
    /// Unknown bits beside a queue index.
    case unknownQueueBits(UInt64)
    /// A flag that is neither zero nor one.
    case notABoolean(UInt32)
    /// A number out of range.
    case numberTooLarge(RequestCode, UInt32)

    /// One line for a log: what was wrong, and with which value.
    package var text: String {
        switch self {
        case .wrongVersion(let version): "a message of version \(version) instead of 1"
        case .unknownFlags(let flags): "a message with flags 0x\(String(flags, radix: 16))"
        case .payloadTooLong(let size):
            "a message announces \(size) bytes, the limit is \(VhostLimits.payloadBytesMax)"
        case .unknownRequest(let request): "request \(request) is not supported"
        case .wrongPayloadSize(let request, let count): "\(request) with \(count) bytes of payload"
        case .wrongDescriptorCount(let request, let count): "\(request) with \(count) descriptors"
        case .wrongRegionCount(let count):
            "a memory table of \(count) regions, 1 to \(VhostLimits.descriptorsMax) are allowed"
        case .unknownQueueBits(let bits):
            "a queue's descriptor with 0x\(String(bits, radix: 16)) instead of an index"
        case .notABoolean(let number): "a flag has the value \(number)"
        case .numberTooLarge(let request, let number): "\(request) with \(number)"
        }
    }
}

/// Addresses of a queue's rings in the front-end's address space (vhost-user, "A vring address
/// description").
package struct UserRingAddresses: Equatable, Sendable, BitwiseCopyable {
    /// The descriptor table.
    package var descriptors: UInt64
    /// The used ring.
    package var used: UInt64
    /// The available ring.
    package var available: UInt64
}

/// An in-flight area as a message describes it (vhost-user, "Inflight description").
package struct InflightDescription: Equatable, Sendable, BitwiseCopyable {
    /// Size of the area, in bytes.
    package var byteCount: UInt64
    /// Offset in its file, in bytes.
    package var offset: UInt64
    /// Number of queues it has room for.
    package var queueCount: UInt16
    /// Entries of each.
    package var queueSize: UInt16

    /// An area with the given fields.
    package init(byteCount: UInt64, offset: UInt64, queueCount: UInt16, queueSize: UInt16) {
        self.byteCount = byteCount
        self.offset = offset
        self.queueCount = queueCount
        self.queueSize = queueSize
    }
}

/// A queue's new descriptor, or none.
package struct QueueDescriptor: Equatable, Sendable, BitwiseCopyable {
    /// The queue's index; may be out of range.
    package var queue: Int
    /// Whether the message carries a descriptor; if so, exactly one.
    package var isPresent: Bool
}

/// A decoded message: payload size and number of descriptors are right, nothing else has been
/// checked.
package enum FrontEndMessage: Equatable, Sendable {
    case getFeatures
    case setFeatures(UInt64)
    case setOwner
    case resetOwner
    case setMemoryTable([MemoryRegion])
    case setQueueSize(queue: Int, UInt32)
    case setQueueAddresses(queue: Int, flags: UInt32, UserRingAddresses)
    case setQueueBase(queue: Int, UInt16)
    case getQueueBase(queue: Int)
    case setQueueKick(QueueDescriptor)
    case setQueueCall(QueueDescriptor)
    case setQueueError(QueueDescriptor)
    case getProtocolFeatures
    case setProtocolFeatures(UInt64)
    case getQueueCount
    case setQueueEnable(queue: Int, Bool)
    case getConfig(offset: UInt32, byteCount: Int, flags: UInt32)
    case setConfig
    case getInflight(InflightDescription, replyBytes: Int)
    case setInflight(InflightDescription)
    case resetDevice
    case getMemorySlots
    case addRegion(MemoryRegion)
    case removeRegion(MemoryRegion)
}
