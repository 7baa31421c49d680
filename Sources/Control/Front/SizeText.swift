package import ServerInterface

/// Sizes as settings write them: bytes, or a number with K, M, G or T (powers of 1024).
package enum SizeText {
    /// Bytes from a text such as `256M`; nil if it is not a size, or too large for 64 bits.
    package static func bytes(_ text: String) -> UInt64? {
        var digits = text[...]
        if digits.lowercased().hasSuffix("ib") { digits = digits.dropLast(2) }
        var shift: UInt64 = 0
        switch digits.last?.uppercased() {
        case "K": shift = 10
        case "M": shift = 20
        case "G": shift = 30
        case "T": shift = 40
        default: break
        }
        if shift > 0 { digits = digits.dropLast() }
        guard !digits.isEmpty, digits.allSatisfy({ $0.isASCII && $0.isNumber }),
            let number = UInt64(digits), number <= .max >> shift
        else { return nil }
        return number << shift
    }

    /// The memory for copies: a size within its range.
    package static func copyMemory(_ text: String) throws(ControlError) -> Int {
        let range = ServerConfiguration.copyMemoryBytesRange
        guard let bytes = bytes(text), bytes <= UInt64(range.upperBound),
            range.contains(Int(bytes))
        else {
            throw .invalidArgument(
                what: "copy-memory '\(text)'", detail: "it must be a size from 1M to 1T")
        }
        return Int(bytes)
    }

    /// The memory that machines may share: a size within its range.
    package static func guestMemory(_ text: String) throws(ControlError) -> UInt64 {
        let range = ServerConfiguration.guestMemoryBytesRange
        guard let bytes = bytes(text), range.contains(bytes) else {
            throw .invalidArgument(
                what: "vhost-memory '\(text)'", detail: "it must be a size from 1M to 64T")
        }
        return bytes
    }

    /// The room that scratch leaves to machines: a size, or a percentage of the file system.
    package static func scratchReserve(_ text: String) throws(ControlError) -> ScratchReserve {
        if text.hasSuffix("%"), let percent = UInt64(text.dropLast()), percent <= 100 {
            return .share(percent: percent)
        }
        guard let bytes = bytes(text), bytes == 0 || bytes >= 1 << 20 else {
            throw .invalidArgument(
                what: "scratch-reserve '\(text)'",
                detail: "it must be a percentage such as 5%, or a size of at least 1M such as 10G;"
                    + " 0 for none")
        }
        return .bytes(bytes)
    }
}
