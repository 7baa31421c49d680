import CLinux

extension FileCalls {
    /// Whether the page cache holds all of a file's range; false where the kernel cannot tell.
    package static func isResident(_ descriptor: Int32, position: UInt64, count: Int) -> Bool {
        let last = (position + UInt64(count) - 1) >> 12
        return nbdpull_cached_pages(descriptor, position, UInt64(count))
            == Int(last - (position >> 12)) + 1
    }

    /// Whether the page cache holds nothing of a file's range; false where the kernel cannot tell.
    package static func isAbsent(_ descriptor: Int32, _ range: Range<UInt64>) -> Bool {
        nbdpull_cached_pages(descriptor, range.lowerBound, range.upperBound - range.lowerBound) == 0
    }
}
