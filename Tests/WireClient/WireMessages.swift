/// How a client and a server agreed to send requests and replies.
package enum WireMode: String, Sendable, CaseIterable, CustomStringConvertible {
    case simple, structured, extended

    package var description: String { rawValue }
    /// Size of a request header, in bytes.
    package var requestHeaderBytes: Int { self == .extended ? 32 : 28 }
}

/// A server that breaks the protocol.
package struct WireViolation: Error, Equatable, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// Commands by their numbers.
package enum WireCommand {
    package static let read: UInt16 = 0
    package static let write: UInt16 = 1
    package static let disconnect: UInt16 = 2
    package static let flush: UInt16 = 3
    package static let trim: UInt16 = 4
    package static let cache: UInt16 = 5
    package static let writeZeroes: UInt16 = 6
    package static let blockStatus: UInt16 = 7
}

/// Flags of a command by their bits.
package enum WireFlag {
    package static let fua: UInt16 = 1
    package static let noHole: UInt16 = 2
    package static let df: UInt16 = 4
    package static let reqOne: UInt16 = 8
    package static let fastZero: UInt16 = 16
    package static let payloadLength: UInt16 = 32
}

/// Flags of an export by their bits.
package enum WireExportFlag {
    package static let readOnly: UInt16 = 1 << 1
    package static let sendDF: UInt16 = 1 << 7
    package static let blockStatusPayload: UInt16 = 1 << 12
}

/// One request, with whatever fields a test wants it to have.
package struct WireRequest: Sendable, Equatable {
    package var command: UInt16
    package var flags: UInt16
    package var cookie: UInt64
    package var offset: UInt64
    /// The header's length field.
    package var length: UInt64
    /// What follows the header.
    package var payload: [UInt8]

    package init(
        _ command: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0,
        length: UInt64 = 0, payload: [UInt8] = []
    ) {
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
    }

    /// A well-formed WRITE.
    package static func write(
        _ bytes: [UInt8], at offset: UInt64, flags: UInt16 = 0, cookie: UInt64 = 1, mode: WireMode
    ) -> WireRequest {
        WireRequest(
            WireCommand.write, flags: mode == .extended ? flags | WireFlag.payloadLength : flags,
            cookie: cookie, offset: offset, length: UInt64(bytes.count), payload: bytes)
    }

    /// A BLOCK_STATUS that names its contexts in a payload.
    package static func status(
        of ids: [UInt32], offset: UInt64, effect: UInt64, flags: UInt16 = 0, cookie: UInt64 = 1
    ) -> WireRequest {
        var payload: [UInt8] = []
        payload.put(effect)
        for id in ids { payload.put(id) }
        return WireRequest(
            WireCommand.blockStatus, flags: flags | WireFlag.payloadLength, cookie: cookie,
            offset: offset, length: UInt64(payload.count), payload: payload)
    }

    /// The request as it stands on the wire; without extended headers the length is cut to 32 bits.
    package func bytes(_ mode: WireMode) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.put(mode == .extended ? 0x21e4_1c71 : 0x2560_9513 as UInt32)
        bytes.put(flags)
        bytes.put(command)
        bytes.put(cookie)
        bytes.put(offset)
        if mode == .extended {
            bytes.put(length)
        } else {
            bytes.put(UInt32(truncatingIfNeeded: length))
        }
        return bytes + payload
    }

    /// Bytes of the export that the request is about.
    var effectLength: UInt64 {
        guard command == WireCommand.blockStatus, flags & WireFlag.payloadLength != 0,
            payload.count >= 8
        else { return length }
        return payload.number(UInt64.self, at: 0)
    }

    /// The contexts that a BLOCK_STATUS asks for; nil: all that were selected.
    var namedContexts: [UInt32]? {
        guard command == WireCommand.blockStatus, flags & WireFlag.payloadLength != 0,
            payload.count >= 8
        else { return nil }
        return stride(from: 8, through: payload.count - 4, by: 4).map {
            payload.number(UInt32.self, at: $0)
        }
    }
}

extension [UInt8] {
    /// Appends a number, most significant byte first.
    mutating func put<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
        for index in (0..<(T.bitWidth / 8)).reversed() {
            append(UInt8(truncatingIfNeeded: value >> (8 * index)))
        }
    }

    /// The number that begins at `offset`, most significant byte first.
    func number<T: FixedWidthInteger & UnsignedInteger>(_: T.Type, at offset: Int) -> T {
        self[offset..<(offset + T.bitWidth / 8)].reduce(0) { $0 << 8 | T($1) }
    }
}
