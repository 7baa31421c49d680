/// The names a disk may have: `vda`, `sdb1`, `nvme0n1`.
package enum TargetName {
    /// Longest target name in bytes.
    ///
    /// It becomes part of export names and file names.
    package static let bytesMax = 64

    /// The names as a pattern of XML Schema datatypes, which is anchored at both ends.
    static let pattern =
        "(ioemu:)?(fd|hd|sd|vd|xvd|ubd)[a-zA-Z0-9_]+|nvme[0-9]+n[0-9]+"

    private static let prefixes = ["fd", "hd", "sd", "vd", "xvd", "ubd"]

    /// Tells whether `pattern` matches `name` and it is no longer than `bytesMax`.
    package static func isValid(_ name: String) -> Bool {
        guard name.utf8.count <= bytesMax else { return false }
        let bare = name.hasPrefix("ioemu:") ? name.dropFirst("ioemu:".count) : Substring(name)
        let matchesPrefix = prefixes.contains { prefix in
            bare.utf8.starts(with: prefix.utf8)
                && bare.utf8.count > prefix.utf8.count
                && bare.utf8.dropFirst(prefix.utf8.count).allSatisfy(isWordByte)
        }
        return matchesPrefix || isNVMeName(name)
    }

    private static func isNVMeName(_ name: String) -> Bool {
        guard name.utf8.starts(with: "nvme".utf8) else { return false }
        let parts = name.utf8.dropFirst("nvme".utf8.count)
            .split(separator: UInt8(ascii: "n"), omittingEmptySubsequences: false)
        return parts.count == 2 && parts.allSatisfy { !$0.isEmpty && $0.allSatisfy(isDigit) }
    }

    private static func isDigit(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }

    private static func isWordByte(_ byte: UInt8) -> Bool {
        isDigit(byte) || byte == UInt8(ascii: "_")
            || (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
            || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte)
    }
}
