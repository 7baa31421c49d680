import Testing

/// Client messages and expected server replies, spelled out byte by byte.
///
/// Deliberately not built from the code under test: numbers stand here a second time.
struct ByteBuilder: CustomTestStringConvertible {
    var bytes: [UInt8] = []

    init() {}

    var testDescription: String { "\(bytes.count) bytes" }

    func u8(_ value: UInt8) -> ByteBuilder { raw([value]) }

    func u16(_ value: UInt16) -> ByteBuilder { big(UInt64(value), byteCount: 2) }

    func u32(_ value: UInt32) -> ByteBuilder { big(UInt64(value), byteCount: 4) }

    func u64(_ value: UInt64) -> ByteBuilder { big(value, byteCount: 8) }

    func text(_ value: String) -> ByteBuilder { raw(Array(value.utf8)) }

    /// A text with its length in 32 bits in front.
    func counted(_ value: String) -> ByteBuilder { u32(UInt32(value.utf8.count)).text(value) }

    func zeros(_ count: Int) -> ByteBuilder { raw([UInt8](repeating: 0, count: count)) }

    func raw(_ more: [UInt8]) -> ByteBuilder {
        var copy = self
        copy.bytes += more
        return copy
    }

    func then(_ other: ByteBuilder) -> ByteBuilder { raw(other.bytes) }

    private func big(_ value: UInt64, byteCount: Int) -> ByteBuilder {
        raw((0..<byteCount).reversed().map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) })
    }
}

extension Span<UInt8> {
    /// The 64-bit number that begins at `offset`.
    func number(at offset: Int) -> UInt64 {
        (offset..<(offset + 8)).reduce(0) { $0 << 8 | UInt64(self[$1]) }
    }
}

/// Shorthand for an empty builder.
var bytes: ByteBuilder { ByteBuilder() }

/// Client messages.
enum Client {
    /// Fixed newstyle and NO_ZEROES.
    static let usualFlags = bytes.u32(3)

    static func option(_ code: UInt32, _ payload: ByteBuilder = bytes) -> ByteBuilder {
        option(code, length: UInt32(payload.bytes.count), payload)
    }

    /// An option whose length field says `length`, whatever follows it.
    static func option(_ code: UInt32, length: UInt32, _ payload: ByteBuilder) -> ByteBuilder {
        bytes.u64(0x4948_4156_454F_5054).u32(code).u32(length).then(payload)
    }

    static func go(_ name: String, _ infos: [UInt16] = []) -> ByteBuilder {
        option(7, infoPayload(name, infos))
    }

    static func info(_ name: String, _ infos: [UInt16] = []) -> ByteBuilder {
        option(6, infoPayload(name, infos))
    }

    static func infoPayload(_ name: String, _ infos: [UInt16]) -> ByteBuilder {
        infos.reduce(bytes.counted(name).u16(UInt16(infos.count))) { $0.u16($1) }
    }

    static let structuredReply = option(8)
    static let extendedHeaders = option(11)

    static func listContexts(_ name: String, _ queries: [String]) -> ByteBuilder {
        option(9, metaPayload(name, queries))
    }

    static func setContexts(_ name: String, _ queries: [String]) -> ByteBuilder {
        option(10, metaPayload(name, queries))
    }

    static func metaPayload(_ name: String, _ queries: [String]) -> ByteBuilder {
        queries.reduce(bytes.counted(name).u32(UInt32(queries.count))) { $0.counted($1) }
    }
}

/// Server replies.
enum Server {
    static func reply(_ code: UInt32, _ type: UInt32, _ data: ByteBuilder = bytes) -> ByteBuilder {
        bytes.u64(0x0003_e889_0455_65a9).u32(code).u32(type).u32(UInt32(data.bytes.count))
            .then(data)
    }

    static func acknowledge(_ code: UInt32) -> ByteBuilder { reply(code, 1) }

    /// EXPORT and BLOCK_SIZE as INFO and GO always send them.
    static func info(_ code: UInt32, size: UInt64, flags: UInt16) -> ByteBuilder {
        exportInfo(code, size: size, flags: flags).then(blockSizeInfo(code))
    }

    static func exportInfo(_ code: UInt32, size: UInt64, flags: UInt16) -> ByteBuilder {
        reply(code, 3, bytes.u16(0).u64(size).u16(flags))
    }

    static func blockSizeInfo(_ code: UInt32) -> ByteBuilder {
        reply(code, 3, bytes.u16(3).u32(1).u32(4096).u32(33_554_432))
    }

    static func context(_ code: UInt32, _ id: UInt32, _ name: String) -> ByteBuilder {
        reply(code, 4, bytes.u32(id).text(name))
    }
}
