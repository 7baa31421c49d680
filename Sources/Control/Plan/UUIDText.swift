import ServerInterface

/// UUIDs as text: lower case, five groups.
package enum UUIDText {
    /// Returns a random UUID (version 4, RFC 9562).
    package static func random() -> String {
        var generator = SystemRandomNumberGenerator()
        return random(using: &generator)
    }

    /// Returns a UUID of version 4 whose random bits come from `generator`.
    package static func random(using generator: inout some RandomNumberGenerator) -> String {
        let high = generator.next() & ~0xF000 | 0x4000
        let low = generator.next() & ~(0b11 << 62) | (0b10 << 62)
        return grouped(hexadecimal(high) + hexadecimal(low))
    }

    /// Returns the UUID of a domain that has none of its own and must have the same in every run.
    ///
    /// Version 8 (RFC 9562, custom): two FNV-1a hashes of 64 bits over `nbdpull domain `, the
    /// number of the half (`0`, `1`), a space and the name in UTF-8, each spread by the final
    /// rounds of SplitMix64.
    package static func derived(fromDomain name: String) -> String {
        let high = spread("nbdpull domain 0 " + name) & ~0xF000 | 0x8000
        let low = spread("nbdpull domain 1 " + name) & ~(0b11 << 62) | (0b10 << 62)
        return grouped(hexadecimal(high) + hexadecimal(low))
    }

    private static func spread(_ text: String) -> UInt64 {
        var hash = StableHash(text).value
        hash = (hash ^ (hash >> 30)) &* 0xBF58_476D_1CE4_E5B9
        hash = (hash ^ (hash >> 27)) &* 0x94D0_49BB_1331_11EB
        return hash ^ (hash >> 31)
    }

    /// Returns the UUID that `text` spells in the form this type uses, or nil when it spells none.
    ///
    /// Accepts upper case, surrounding white space and hyphens between any two digits or none at
    /// all, as libvirt does.
    package static func normalized(_ text: String) -> String? {
        var digits = ""
        var previousWasHyphen = true
        for scalar in text.trimmingWhitespace().unicodeScalars {
            if scalar == "-" {
                guard !previousWasHyphen else { return nil }
                previousWasHyphen = true
                continue
            }
            guard scalar.isASCII, Character(scalar).isHexDigit else { return nil }
            previousWasHyphen = false
            digits.unicodeScalars.append(scalar)
        }
        guard digits.utf8.count == 32, !previousWasHyphen else { return nil }
        return grouped(digits.lowercased())
    }

    private static func hexadecimal(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }

    private static func grouped(_ digits: String) -> String {
        var rest = Substring(digits)
        return [8, 4, 4, 4, 12].map { count in
            defer { rest = rest.dropFirst(count) }
            return String(rest.prefix(count))
        }.joined(separator: "-")
    }
}

extension String {
    /// Returns the text without the white space of XML at either end.
    func trimmingWhitespace() -> String {
        let isSpace: (Unicode.Scalar) -> Bool = { [" ", "\t", "\n", "\r"].contains($0) }
        let tail = unicodeScalars.drop(while: isSpace)
        guard let last = tail.lastIndex(where: { !isSpace($0) }) else { return "" }
        return String(tail[...last])
    }
}
