extension [UInt8] {
    /// Appends an integer, lowest byte first.
    mutating func append<T: FixedWidthInteger & UnsignedInteger>(littleEndian value: T) {
        var rest = value
        for _ in 0..<(T.bitWidth / 8) {
            append(UInt8(truncatingIfNeeded: rest))
            rest >>= 8
        }
    }
}

extension Span<UInt8> {
    /// The little-endian integer `offset` bytes in; traps outside, callers check lengths first.
    func littleEndian<T: FixedWidthInteger & UnsignedInteger>(_: T.Type, at offset: Int) -> T {
        var value: T = 0
        for index in (offset..<(offset + T.bitWidth / 8)).reversed() {
            value = value << 8 | T(self[index])
        }
        return value
    }
}
