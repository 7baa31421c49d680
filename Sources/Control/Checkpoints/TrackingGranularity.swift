/// How many bytes one bit of a dirty bitmap covers.
package enum TrackingGranularity {
    /// The default.
    package static let bytesDefault: UInt32 = 65_536
    package static let bytesMin: UInt32 = 4096
    package static let bytesMax: UInt32 = 2 << 20

    /// Takes a number that a user gave.
    ///
    /// - Throws: 8 for what is no power of two between `bytesMin` and `bytesMax`.
    package static func checked(_ bytes: UInt64) throws(ControlError) -> UInt32 {
        guard let value = UInt32(exactly: bytes), (bytesMin...bytesMax).contains(value),
            value.nonzeroBitCount == 1
        else {
            throw .invalidArgument(
                what: "granularity of \(bytes) bytes",
                detail: "it must be a power of two between \(bytesMin) (4 KiB) and \(bytesMax) "
                    + "(2 MiB)")
        }
        return value
    }
}
