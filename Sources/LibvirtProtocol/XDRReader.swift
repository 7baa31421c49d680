/// Why bytes are not XDR (RFC 4506) of a known shape.
package enum XDRError: Error, Sendable, Hashable {
    /// The bytes end before the value does.
    case truncated(needed: Int, left: Int)
    /// A length is beyond the limit of what it counts.
    case tooLong(count: UInt32, limit: Int)
    /// A truth value that is neither 0 nor 1.
    case notABoolean(UInt32)
    /// A string that is not UTF-8, or holds a zero byte.
    case notText
    /// A typed parameter's type that does not exist.
    case unknownType(Int32)
    /// Bytes behind the last value.
    case trailing(Int)
}

extension XDRError: CustomStringConvertible {
    /// What is wrong, without repeating a byte of the peer's.
    package var description: String {
        switch self {
        case .truncated(let needed, let left): "\(needed) bytes are needed, \(left) are left"
        case .tooLong(let count, let limit): "a length of \(count) is beyond the limit of \(limit)"
        case .notABoolean(let value): "\(value) is neither true nor false"
        case .notText: "a string is not text"
        case .unknownType(let type): "\(type) is no type of a parameter"
        case .trailing(let count): "\(count) bytes follow the last value"
        }
    }
}

/// Reads XDR values one after the other; nothing is allocated for a length before its bytes are
/// known to be there.
package struct XDRReader: Sendable {
    private var rest: ArraySlice<UInt8>

    /// Reads from the beginning of `bytes`.
    package init(_ bytes: [UInt8]) { rest = bytes[...] }

    /// Bytes that have not been read.
    package var left: Int { rest.count }

    /// Throws when bytes are left.
    package func finish() throws(XDRError) {
        guard rest.isEmpty else { throw .trailing(rest.count) }
    }

    private mutating func take(_ count: Int) throws(XDRError) -> ArraySlice<UInt8> {
        guard count <= rest.count else { throw .truncated(needed: count, left: rest.count) }
        defer { rest = rest.dropFirst(count) }
        return rest.prefix(count)
    }

    /// An unsigned integer of 32 bits.
    package mutating func uint() throws(XDRError) -> UInt32 {
        try take(4).reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// A signed integer of 32 bits.
    package mutating func int() throws(XDRError) -> Int32 { Int32(bitPattern: try uint()) }

    /// An unsigned integer of 64 bits.
    package mutating func uhyper() throws(XDRError) -> UInt64 {
        try take(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// A signed integer of 64 bits.
    package mutating func hyper() throws(XDRError) -> Int64 { Int64(bitPattern: try uhyper()) }

    /// A floating point number of 64 bits.
    package mutating func double() throws(XDRError) -> Double {
        Double(bitPattern: try uhyper())
    }

    /// A truth value, which is also what says that an optional value follows.
    package mutating func bool() throws(XDRError) -> Bool {
        let value = try uint()
        guard value <= 1 else { throw .notABoolean(value) }
        return value == 1
    }

    /// Bytes of a fixed count, with what fills them up to a multiple of four.
    package mutating func opaque(count: Int) throws(XDRError) -> [UInt8] {
        let bytes = Array(try take(count))
        _ = try take(-count & 3)
        return bytes
    }

    /// The length in front of an array: at most `limit` elements, each of `elementBytes` at least.
    ///
    /// A count whose elements cannot all be there is refused before any of them is read.
    package mutating func count(limit: Int, elementBytes: Int = 4) throws(XDRError) -> Int {
        let value = try uint()
        guard value <= UInt32(clamping: limit) else { throw .tooLong(count: value, limit: limit) }
        let (bytes, overflow) = Int(value).multipliedReportingOverflow(by: elementBytes)
        guard !overflow, bytes <= rest.count else {
            throw .truncated(needed: overflow ? Int.max : bytes, left: rest.count)
        }
        return Int(value)
    }

    /// A string of at most `limit` bytes.
    package mutating func string(
        limit: Int = LibvirtLimits.stringBytesMax
    ) throws(XDRError) -> String {
        let bytes = try opaque(count: try count(limit: limit, elementBytes: 1))
        guard !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else {
            throw .notText
        }
        return text
    }

    /// A string that may be absent.
    package mutating func optionalString(
        limit: Int = LibvirtLimits.stringBytesMax
    ) throws(XDRError) -> String? {
        try bool() ? try string(limit: limit) : nil
    }

    /// An array of strings.
    package mutating func strings(limit: Int) throws(XDRError) -> [String] {
        var list: [String] = []
        for _ in 0..<(try count(limit: limit)) { list.append(try string()) }
        return list
    }
}
