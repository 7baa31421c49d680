import CLinux
import Glibc

/// The file system of an open file, as far as its room is concerned.
extension FileCalls {
    /// Tells one file system from another: two files with the same number share their room.
    package static func fileSystem(_ descriptor: Int32) -> UInt64? {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe fstat(descriptor, &facts) == 0 else { return nil }
        return UInt64(facts.st_dev)
    }

    /// Tells one file or device from another while it is open, whatever names it has; nil when it
    /// cannot be told.
    package static func node(_ descriptor: Int32) -> FileNode? {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe fstat(descriptor, &facts) == 0 else { return nil }
        // Several nodes may stand for one device.
        return facts.st_mode & S_IFMT == S_IFBLK
            ? FileNode(device: UInt64(facts.st_rdev), inode: nil)
            : FileNode(device: UInt64(facts.st_dev), inode: UInt64(facts.st_ino))
    }

    /// Bytes that an open file takes on its file system: fewer than its size where it has holes; nil
    /// when that cannot be told.
    package static func allocatedBytes(_ descriptor: Int32) -> UInt64? {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe fstat(descriptor, &facts) == 0 else { return nil }
        return UInt64(clamping: facts.st_blocks).saturatingMultiply(512)
    }

    /// Bytes of the whole file system, and those that an ordinary user can still fill; nil when it
    /// does not say.
    package static func space(_ descriptor: Int32) -> (totalBytes: UInt64, freeBytes: UInt64)? {
        var facts = statvfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe fstatvfs(descriptor, &facts) == 0 else { return nil }
        let unit = UInt64(facts.f_frsize)
        return (
            UInt64(facts.f_blocks).saturatingMultiply(unit),
            UInt64(facts.f_bavail).saturatingMultiply(unit)
        )
    }
}

/// What two names of one file or device have in common.
package struct FileNode: Sendable, Hashable {
    let device: UInt64
    let inode: UInt64?
}

extension UInt64 {
    /// The product, or the largest number where it does not fit.
    package func saturatingMultiply(_ other: UInt64) -> UInt64 {
        let (product, overflows) = multipliedReportingOverflow(by: other)
        return overflows ? .max : product
    }
}
