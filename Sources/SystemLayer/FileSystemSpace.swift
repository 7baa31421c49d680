import CLinux
import Glibc

/// The file system of an open file, as far as its room is concerned.
extension FileCalls {
    /// Tells one file system from another: two files with the same number share their room.
    ///
    /// Subvolumes of btrfs are devices of their own and share their room all the same.
    package static func fileSystem(_ descriptor: Int32) -> UInt64? {
        var facts = statfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        if unsafe fstatfs(descriptor, &facts) == 0,
            Int(facts.f_type) == nbdpull_BTRFS_SUPER_MAGIC
        {
            let id = nbdpull_btrfs_id(descriptor)
            if id != 0 { return id }
        }
        return device(descriptor)
    }

    /// Whether a file shows something of the kernel's (`/proc`, `/sys`, ...): its size means
    /// nothing, and writes to it are commands.
    package static func isKernelInterface(_ descriptor: Int32) -> Bool {
        var facts = statfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        return unsafe fstatfs(descriptor, &facts) == 0
            && nbdpull_is_interface(Int(facts.f_type)) != 0
    }

    /// The path by which an open file is known now, links resolved; nil when it has none.
    ///
    /// Needs `/proc`.
    package static func path(of descriptor: Int32) -> String? {
        resolved("/proc/self/fd/\(descriptor)")
    }

    /// A path without links; nil when nothing is there.
    package static func resolved(_ path: String) -> String? {
        // SAFETY: the string is passed for the time of the call; what it returns is copied and
        // freed.
        guard let found = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(found) }
        return unsafe String(cString: found)
    }

    /// `st_dev`: with an inode's number it tells a file from others.
    package static func device(_ descriptor: Int32) -> UInt64? {
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

    /// The same of what a path leads to; may wait for its file system.
    package static func node(path: String) -> FileNode? {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe stat(path, &facts) == 0 else { return nil }
        return facts.st_mode & S_IFMT == S_IFBLK
            ? FileNode(device: UInt64(facts.st_rdev), inode: nil)
            : FileNode(device: UInt64(facts.st_dev), inode: UInt64(facts.st_ino))
    }

    /// Bytes that an open file takes on its file system: fewer than its size where it has holes;
    /// nil when that cannot be told.
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

    /// A device, or the file with that inode on it.
    package init(device: UInt64, inode: UInt64? = nil) {
        self.device = device
        self.inode = inode
    }

    /// What tells it from others in a file: one word.
    package var text: String { inode.map { "\(device):\($0)" } ?? "\(device)" }
}

extension UInt64 {
    /// The product, or the largest number where it does not fit.
    package func saturatingMultiply(_ other: UInt64) -> UInt64 {
        let (product, overflows) = multipliedReportingOverflow(by: other)
        return overflows ? .max : product
    }
}
