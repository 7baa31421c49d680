// The front-end's side of vhost-user on the socket. Numbers are this client's own: it shares
// nothing with the server that it tests.

/// A message with as many descriptors as a test wants it to have.
package struct ClientMessage: Sendable, Equatable {
    package var request: UInt32
    package var flags: UInt32
    package var payload: [UInt8]
    package var descriptors: Int
    /// What stands in the header's size field; nil: the payload's own size.
    package var announced: UInt32?

    package init(
        _ request: UInt32, _ payload: [UInt8] = [], descriptors: Int = 0, flags: UInt32 = 1
    ) {
        self.request = request
        self.payload = payload
        self.descriptors = descriptors
        self.flags = flags
    }

    /// The same, with an answer wanted.
    package var acknowledged: ClientMessage {
        var message = self
        message.flags |= 8
        return message
    }

    /// Header and payload.
    package var bytes: [UInt8] {
        little(request) + little(flags) + little(announced ?? UInt32(payload.count)) + payload
    }
}

/// A back-end that breaks the protocol.
package struct ClientViolation: Error, Equatable, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// A reply, checked against its request.
package struct ClientReply: Sendable, Equatable {
    package let request: UInt32
    package let payload: [UInt8]

    package init(_ bytes: [UInt8], to request: UInt32) throws {
        guard bytes.count >= 12 else { throw ClientViolation("a reply of \(bytes.count) bytes") }
        self.request = number(bytes, 0, as: UInt32.self)
        payload = Array(bytes[12...])
        guard self.request == request else {
            throw ClientViolation("\(request) is answered with \(self.request)")
        }
        guard number(bytes, 4, as: UInt32.self) == 5 else {
            throw ClientViolation("a reply with other flags than version 1 and reply")
        }
        guard Int(number(bytes, 8, as: UInt32.self)) == payload.count else {
            throw ClientViolation("a reply announces another size")
        }
    }

    /// The 64-bit number that is all of the payload.
    package var word: UInt64 {
        get throws {
            guard payload.count == 8 else { throw ClientViolation("no number in the reply") }
            return number(payload, 0, as: UInt64.self)
        }
    }
}

/// A region of memory as a front-end has it.
package struct ClientRegion: Sendable, Equatable {
    package var guest: UInt64
    package var size: UInt64
    package var user: UInt64
    package var offset: UInt64

    package init(guest: UInt64, size: UInt64, user: UInt64, offset: UInt64 = 0) {
        self.guest = guest
        self.size = size
        self.user = user
        self.offset = offset
    }

    var bytes: [UInt8] { little(guest) + little(size) + little(user) + little(offset) }
}

extension ClientMessage {
    package static let getFeatures = ClientMessage(1)
    package static func setFeatures(_ bits: UInt64) -> ClientMessage {
        ClientMessage(2, little(bits))
    }
    package static let setOwner = ClientMessage(3)
    package static let resetOwner = ClientMessage(4)
    package static func setMemory(_ regions: [ClientRegion]) -> ClientMessage {
        ClientMessage(
            5, little(UInt32(regions.count)) + little(UInt32(0)) + regions.flatMap(\.bytes),
            descriptors: regions.count)
    }
    package static func setSize(_ queue: UInt32, _ size: UInt32) -> ClientMessage {
        ClientMessage(8, little(queue) + little(size))
    }
    package static func setAddresses(
        _ queue: UInt32, descriptors: UInt64, used: UInt64, available: UInt64, flags: UInt32 = 0
    ) -> ClientMessage {
        ClientMessage(
            9,
            little(queue) + little(flags) + little(descriptors) + little(used) + little(available)
                + little(UInt64(0)))
    }
    package static func setBase(_ queue: UInt32, _ base: UInt32) -> ClientMessage {
        ClientMessage(10, little(queue) + little(base))
    }
    package static func getBase(_ queue: UInt32) -> ClientMessage {
        ClientMessage(11, little(queue) + little(UInt32(0)))
    }
    package static func setKick(_ queue: UInt64) -> ClientMessage {
        ClientMessage(12, little(queue), descriptors: 1)
    }
    package static func setCall(_ queue: UInt64, isPresent: Bool = true) -> ClientMessage {
        ClientMessage(13, little(queue | (isPresent ? 0 : 256)), descriptors: isPresent ? 1 : 0)
    }
    package static func setError(_ queue: UInt64, isPresent: Bool = true) -> ClientMessage {
        ClientMessage(14, little(queue | (isPresent ? 0 : 256)), descriptors: isPresent ? 1 : 0)
    }
    package static let getProtocolFeatures = ClientMessage(15)
    package static func setProtocolFeatures(_ bits: UInt64) -> ClientMessage {
        ClientMessage(16, little(bits))
    }
    package static let getQueueCount = ClientMessage(17)
    package static func setEnable(_ queue: UInt32, _ value: UInt32) -> ClientMessage {
        ClientMessage(18, little(queue) + little(value))
    }
    package static func getConfig(offset: UInt32, size: Int, flags: UInt32 = 0) -> ClientMessage {
        ClientMessage(
            24,
            little(offset) + little(UInt32(size)) + little(flags)
                + [UInt8](repeating: 0, count: size))
    }
    package static func setConfig(offset: UInt32, _ bytes: [UInt8]) -> ClientMessage {
        ClientMessage(
            25, little(offset) + little(UInt32(bytes.count)) + little(UInt32(0)) + bytes)
    }
    package static func getInflight(queues: UInt16, size: UInt16) -> ClientMessage {
        ClientMessage(
            31,
            little(UInt64(0)) + little(UInt64(0)) + little(queues) + little(size)
                + [0, 0, 0, 0])
    }
    package static func setInflight(
        bytes: UInt64, offset: UInt64 = 0, queues: UInt16, size: UInt16
    ) -> ClientMessage {
        ClientMessage(
            32, little(bytes) + little(offset) + little(queues) + little(size) + [0, 0, 0, 0],
            descriptors: 1)
    }
    package static let resetDevice = ClientMessage(34)
    package static let getSlots = ClientMessage(36)
    package static func addRegion(_ region: ClientRegion) -> ClientMessage {
        ClientMessage(37, little(UInt64(0)) + region.bytes, descriptors: 1)
    }
    package static func removeRegion(
        _ region: ClientRegion, descriptors: Int = 0
    ) -> ClientMessage {
        ClientMessage(38, little(UInt64(0)) + region.bytes, descriptors: descriptors)
    }
}

/// The bytes of a number, the lowest first.
package func little<T: FixedWidthInteger & UnsignedInteger>(_ value: T) -> [UInt8] {
    (0..<MemoryLayout<T>.size).map { UInt8(truncatingIfNeeded: value >> T(8 * $0)) }
}

/// The number that stands so many bytes in.
package func number<T: FixedWidthInteger & UnsignedInteger>(
    _ bytes: [UInt8], _ offset: Int, as: T.Type
) -> T {
    (0..<MemoryLayout<T>.size).reduce(T(0)) { $0 | T(bytes[offset + $1]) << T(8 * $1) }
}
