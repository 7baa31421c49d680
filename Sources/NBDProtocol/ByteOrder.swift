// Big-endian integers and bounded UTF-8, as the protocol has them on the wire.

extension Span<UInt8> {
    /// The big-endian integer that starts `offset` bytes in.
    ///
    /// Traps when out of bounds: callers check lengths first.
    func bigEndian<T: FixedWidthInteger & UnsignedInteger>(_: T.Type, at offset: Int) -> T {
        var value: T = 0
        for index in offset..<(offset + MemoryLayout<T>.size) {
            value = value << 8 | T(self[index])
        }
        return value
    }

    /// How many leading bytes to keep so that at most `limit` remain and no character is cut.
    ///
    /// The bytes are UTF-8; for anything else only the bound holds.
    func utf8PrefixCount(limit: Int) -> Int {
        guard count > limit else { return count }
        var end = limit
        // A continuation byte at the cut means that the character began before it.
        while end > 0 && self[end] & 0b1100_0000 == 0b1000_0000 { end -= 1 }
        return end
    }
}

extension [UInt8] {
    /// Appends `value` in network byte order.
    mutating func appendBigEndian<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
        for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
            append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }
}

extension String {
    /// Whether both strings are the same bytes.
    ///
    /// `==` also calls differently composed characters equal, which names on the wire are not.
    func hasSameBytes(as other: String) -> Bool { utf8.elementsEqual(other.utf8) }

    /// Whether this string's bytes begin with those of `prefix`.
    func hasBytePrefix(_ prefix: String) -> Bool { utf8.starts(with: prefix.utf8) }
}
