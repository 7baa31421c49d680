// Little-endian integers. Rings and configuration space are little-endian (virtio 1.4), messages
// are in native order, and all supported machines are little-endian.

extension Span<UInt8> {
    /// The little-endian integer that starts `offset` bytes in.
    ///
    /// Traps when out of bounds: callers check lengths first.
    func littleEndian<T: FixedWidthInteger & UnsignedInteger>(_: T.Type, at offset: Int) -> T {
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size {
            value |= T(self[offset + index]) << T(8 * index)
        }
        return value
    }
}

extension [UInt8] {
    /// Appends `value`, least significant byte first.
    mutating func appendLittleEndian<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) {
            append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }

    /// Overwrites the integer at `offset`.
    mutating func setLittleEndian<T: FixedWidthInteger & UnsignedInteger>(
        _ value: T, at offset: Int
    ) {
        for index in 0..<MemoryLayout<T>.size {
            self[offset + index] = UInt8(truncatingIfNeeded: value >> T(8 * index))
        }
    }
}
