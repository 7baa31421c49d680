import CLinux
import Glibc

/// One extent of a file, as its file system keeps it.
package struct FileExtent: Sendable, Equatable {
    /// What an extent says about the bytes in it.
    package enum State: Sendable, Hashable {
        /// Written, or waiting in the page cache to be written back.
        case data
        /// Space is reserved; whether the page cache holds bytes for it, the extent does not tell.
        case unwritten

        /// What flags of FIEMAP (`linux/fiemap.h`) mean; nil for any that is not known for certain.
        package init?(flags: UInt32) {
            let place = flags & ~UInt32(FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_MERGED)
            switch Int32(bitPattern: place) {
            case 0, FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN: self = .data
            case FIEMAP_EXTENT_UNWRITTEN: self = .unwritten
            default: return nil
            }
        }
    }

    /// First byte, which may lie before what was asked for.
    package let start: UInt64
    /// Byte behind the last, which may lie behind what was asked for or the file's end.
    package let end: UInt64
    package let state: State
}

/// The extents of a stretch of a file, told by one call (FIEMAP); room is taken at the first call
/// and kept.
///
/// The call never has anything written back. It asks about the file as it is; what it says about
/// the last extent of a range or file is not relied on.
package struct FileExtents: Sendable {
    /// Extents told by one call: what takes about as long as the lookups that a ring makes in a
    /// turn.
    package static let countMax = 128
    /// `struct fiemap` and `struct fiemap_extent`, in words of 64 bits.
    private static let headWords = 4
    private static let extentWords = 7

    private var words: [UInt64] = []
    /// Extents told by the last call.
    package private(set) var count = 0

    package init() {}

    /// Asks which extents touch a range that is not empty; false when the file system does not say.
    ///
    /// With fewer than `countMax` extents the whole range is told, else what comes before the last
    /// one's end.
    package mutating func read(_ descriptor: Int32, from start: UInt64, to end: UInt64) -> Bool {
        precondition(start < end)
        if words.isEmpty {
            words = [UInt64](
                repeating: 0, count: Self.headWords + Self.countMax * Self.extentWords)
        }
        words[0] = start
        words[1] = end - start
        // No flags, no extents told yet; then the room for them.
        words[2] = 0
        words[3] = UInt64(Self.countMax)
        count = 0
        // SAFETY: the array is as long as the head and the extents that the head announces; the
        // kernel fills them in during the call and keeps no pointer.
        let result = unsafe words.withUnsafeMutableBytes { memory in
            unsafe nbdpull_ioctl_memory(descriptor, nbdpull_FS_IOC_FIEMAP, memory.baseAddress)
        }
        guard result == 0 else { return false }
        count = Int(words[2] >> 32)
        precondition(count <= Self.countMax, "the kernel told more extents than it has room for")
        return true
    }

    /// An extent of the last call; nil when its flags or bounds are not what is known for certain.
    package subscript(index: Int) -> FileExtent? {
        precondition(index < count)
        let base = Self.headWords + index * Self.extentWords
        let (end, wraps) = words[base].addingReportingOverflow(words[base + 2])
        let flags = UInt32(truncatingIfNeeded: words[base + 5])
        guard !wraps, let state = FileExtent.State(flags: flags) else { return nil }
        return FileExtent(start: words[base], end: end, state: state)
    }
}
