/// Reads the usual file of pre-shared keys: lines of `user:hexkey`, as psktool writes them.
enum KeyFile {
    /// A larger file is a mistake.
    static let usersMax = 100_000
    /// Longest name, as TLS 1.2 clients have it (RFC 4279, 5.3).
    static let nameBytesMax = 128
    /// Longest key the library takes.
    static let keyBytesMax = 256

    /// What is wrong with a line, without its content.
    struct Fault: Error, Hashable {
        let line: Int
        let detail: String
    }

    /// The keys by user; empty lines and lines that begin with `#` are left out.
    static func parse(_ bytes: [UInt8]) throws(Fault) -> [[UInt8]: [UInt8]] {
        var keys: [[UInt8]: [UInt8]] = [:]
        var number = 0
        for line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
            number += 1
            let text = trimmed(line)
            if text.isEmpty || text.first == UInt8(ascii: "#") { continue }
            guard let colon = text.lastIndex(of: UInt8(ascii: ":")) else {
                throw Fault(line: number, detail: "it must be user:hexkey")
            }
            let user = Array(text[..<colon])
            guard (1...nameBytesMax).contains(user.count) else {
                throw Fault(line: number, detail: "a user has 1 to \(nameBytesMax) bytes")
            }
            guard let key = unhex(text[(colon + 1)...]), (1...keyBytesMax).contains(key.count)
            else {
                throw Fault(
                    line: number, detail: "a key has 1 to \(keyBytesMax) bytes, two hex digits each"
                )
            }
            guard keys.updateValue(key, forKey: user) == nil else {
                throw Fault(line: number, detail: "the same user is already on an earlier line")
            }
            guard keys.count <= usersMax else {
                throw Fault(line: number, detail: "there are more than \(usersMax) users")
            }
        }
        return keys
    }

    private static func trimmed(_ line: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        var line = line
        while let last = line.last, last == 0x0d || last == 0x20 || last == 0x09 {
            line.removeLast()
        }
        return line
    }

    private static func unhex(_ digits: ArraySlice<UInt8>) -> [UInt8]? {
        guard digits.count.isMultiple(of: 2) else { return nil }
        var bytes: [UInt8] = []
        var high: UInt8?
        for digit in digits {
            guard let value = Character(Unicode.Scalar(digit)).hexDigitValue, digit < 0x80 else {
                return nil
            }
            if let first = high {
                bytes.append(first << 4 | UInt8(value))
                high = nil
            } else {
                high = UInt8(value)
            }
        }
        return bytes
    }
}
