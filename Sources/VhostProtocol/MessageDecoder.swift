/// Decodes messages.
package enum MessageDecoder {
    /// Decodes the message with this header and payload, which came with `descriptors` descriptors.
    ///
    /// `payload` is as long as the header says.
    package static func decode(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: Int
    ) throws(MessageFault) -> FrontEndMessage {
        guard let code = RequestCode(rawValue: header.request) else {
            throw .unknownRequest(header.request)
        }
        let reader = PayloadReader(code: code, descriptors: descriptors)
        switch code {
        case .getFeatures, .setOwner, .resetOwner, .getProtocolFeatures, .getQueueCount,
            .resetDevice, .getMemorySlots:
            return try reader.bare(payload)
        case .setFeatures: return .setFeatures(try reader.word(payload))
        case .setProtocolFeatures: return .setProtocolFeatures(try reader.word(payload))
        case .setMemoryTable: return try reader.memoryTable(payload)
        case .setQueueSize, .setQueueBase, .getQueueBase, .setQueueEnable:
            return try reader.queueState(payload)
        case .setQueueAddresses: return try reader.queueAddresses(payload)
        case .setQueueKick: return .setQueueKick(try reader.queueDescriptor(payload))
        case .setQueueCall: return .setQueueCall(try reader.queueDescriptor(payload))
        case .setQueueError: return .setQueueError(try reader.queueDescriptor(payload))
        case .getConfig, .setConfig: return try reader.config(payload)
        case .getInflight, .setInflight: return try reader.inflight(payload)
        case .addRegion, .removeRegion: return try reader.singleRegion(payload)
        }
    }
}

/// Reads the payload of one request.
private struct PayloadReader {
    let code: RequestCode
    /// Descriptors that came with the message.
    let descriptors: Int

    private func expect(
        _ payload: Span<UInt8>, _ byteCount: Int, descriptors expected: Int = 0
    ) throws(MessageFault) {
        guard payload.count == byteCount else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        try expectDescriptors(expected)
    }

    private func expectDescriptors(_ expected: Int) throws(MessageFault) {
        guard descriptors == expected else {
            throw .wrongDescriptorCount(code, count: descriptors)
        }
    }

    /// A request without a payload.
    func bare(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        try expect(payload, 0)
        switch code {
        case .getFeatures: return .getFeatures
        case .setOwner: return .setOwner
        case .resetOwner: return .resetOwner
        case .getProtocolFeatures: return .getProtocolFeatures
        case .getQueueCount: return .getQueueCount
        case .resetDevice: return .resetDevice
        default: return .getMemorySlots
        }
    }

    func word(_ payload: Span<UInt8>) throws(MessageFault) -> UInt64 {
        try expect(payload, PayloadBytes.word)
        return payload.littleEndian(UInt64.self, at: 0)
    }

    func memoryTable(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        guard payload.count >= PayloadBytes.memoryTableHeader else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        let count = payload.littleEndian(UInt32.self, at: 0)
        guard count >= 1, count <= UInt32(VhostLimits.descriptorsMax) else {
            throw .wrongRegionCount(count)
        }
        // Some front-ends always send the whole array.
        let used = PayloadBytes.memoryTableHeader + Int(count) * PayloadBytes.region
        let whole =
            PayloadBytes.memoryTableHeader + VhostLimits.descriptorsMax * PayloadBytes.region
        guard payload.count == used || payload.count == whole else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        try expectDescriptors(Int(count))
        return .setMemoryTable(
            (0..<Int(count)).map {
                MemoryRegion(
                    payload, at: PayloadBytes.memoryTableHeader + $0 * PayloadBytes.region)
            })
    }

    func singleRegion(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        guard payload.count == PayloadBytes.singleRegion else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        let region = MemoryRegion(payload, at: PayloadBytes.singleRegion - PayloadBytes.region)
        if code == .addRegion {
            try expectDescriptors(1)
            return .addRegion(region)
        }
        // The specification tolerates one descriptor, which is closed unused.
        guard descriptors <= 1 else { throw .wrongDescriptorCount(code, count: descriptors) }
        return .removeRegion(region)
    }

    func queueState(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        try expect(payload, PayloadBytes.queueState)
        let queue = Int(payload.littleEndian(UInt32.self, at: 0))
        let number = payload.littleEndian(UInt32.self, at: 4)
        switch code {
        case .setQueueSize:
            return .setQueueSize(queue: queue, number)
        case .setQueueBase:
            guard let base = UInt16(exactly: number) else { throw .numberTooLarge(code, number) }
            return .setQueueBase(queue: queue, base)
        case .setQueueEnable:
            guard number <= 1 else { throw .notABoolean(number) }
            return .setQueueEnable(queue: queue, number == 1)
        default:
            return .getQueueBase(queue: queue)
        }
    }

    func queueAddresses(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        try expect(payload, PayloadBytes.queueAddresses)
        return .setQueueAddresses(
            queue: Int(payload.littleEndian(UInt32.self, at: 0)),
            flags: payload.littleEndian(UInt32.self, at: 4),
            UserRingAddresses(
                descriptors: payload.littleEndian(UInt64.self, at: 8),
                used: payload.littleEndian(UInt64.self, at: 16),
                available: payload.littleEndian(UInt64.self, at: 24)))
    }

    func queueDescriptor(_ payload: Span<UInt8>) throws(MessageFault) -> QueueDescriptor {
        guard payload.count == PayloadBytes.word else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        let bits = payload.littleEndian(UInt64.self, at: 0)
        guard bits & ~(QueueDescriptorBits.indexMask | QueueDescriptorBits.noDescriptor) == 0 else {
            throw .unknownQueueBits(bits)
        }
        let isPresent = bits & QueueDescriptorBits.noDescriptor == 0
        try expectDescriptors(isPresent ? 1 : 0)
        return QueueDescriptor(
            queue: Int(bits & QueueDescriptorBits.indexMask), isPresent: isPresent)
    }

    func config(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        guard payload.count >= PayloadBytes.configHeader else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        let announced = payload.littleEndian(UInt32.self, at: 4)
        let byteCount = payload.count - PayloadBytes.configHeader
        guard announced == UInt32(byteCount) else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        try expectDescriptors(0)
        guard code == .getConfig else { return .setConfig }
        return .getConfig(
            offset: payload.littleEndian(UInt32.self, at: 0), byteCount: byteCount,
            flags: payload.littleEndian(UInt32.self, at: 8))
    }

    func inflight(_ payload: Span<UInt8>) throws(MessageFault) -> FrontEndMessage {
        guard
            payload.count == PayloadBytes.inflight
                || payload.count == PayloadBytes.inflightRounded
        else {
            throw .wrongPayloadSize(code, byteCount: payload.count)
        }
        try expectDescriptors(code == .setInflight ? 1 : 0)
        let description = InflightDescription(
            byteCount: payload.littleEndian(UInt64.self, at: 0),
            offset: payload.littleEndian(UInt64.self, at: 8),
            queueCount: payload.littleEndian(UInt16.self, at: 16),
            queueSize: payload.littleEndian(UInt16.self, at: 18))
        return code == .setInflight
            ? .setInflight(description)
            : .getInflight(description, replyBytes: payload.count)
    }
}

extension MemoryRegion {
    /// The region at `offset` in a payload.
    fileprivate init(_ payload: Span<UInt8>, at offset: Int) {
        self.init(
            guestAddress: payload.littleEndian(UInt64.self, at: offset),
            byteCount: payload.littleEndian(UInt64.self, at: offset + 8),
            userAddress: payload.littleEndian(UInt64.self, at: offset + 16),
            fileOffset: payload.littleEndian(UInt64.self, at: offset + 24))
    }
}
