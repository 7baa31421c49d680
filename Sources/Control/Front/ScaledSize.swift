/// Reads sizes as virsh takes them: a number with a unit, `10G`, `512MiB`, `4096b`.
package enum ScaledSize {
    private static let binary = ["k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6]

    /// The bytes that a text names; a number without a unit counts in `unit` bytes.
    ///
    /// `K`, `KiB` and so on are powers of 1024, `KB` and so on of 1000, `b` and `bytes` one.
    ///
    /// - Throws: 8 for text that is not a size, and for 2^64 bytes or more.
    package static func bytes(_ text: String, unit: UInt64) throws(ControlError) -> UInt64 {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let suffix = text.dropFirst(digits.count).lowercased()
        guard let number = UInt64(digits), let scale = scale(suffix, unit) else {
            throw .invalidArgument(
                what: "size '\(text)'",
                detail: "it must be a number below 2^64 with a unit such as b, KiB, MiB or G")
        }
        let (bytes, isTooLarge) = number.multipliedReportingOverflow(by: scale)
        guard !isTooLarge else {
            throw .invalidArgument(what: "size '\(text)'", detail: "it is 2^64 bytes or more")
        }
        return bytes
    }

    private static func scale(_ suffix: String, _ unit: UInt64) -> UInt64? {
        if suffix.isEmpty { return unit }
        if ["b", "byte", "bytes"].contains(suffix) { return 1 }
        guard let power = binary[String(suffix.prefix(1))] else { return nil }
        let base: UInt64
        switch suffix.dropFirst() {
        case "", "ib": base = 1024
        case "b": base = 1000
        default: return nil
        }
        return (0..<power).reduce(1) { scale, _ in scale * base }
    }
}
