import CDispatch
import Glibc

/// What paths lead to.
extension SystemCalls {
    /// What a path leads to, links followed: of a block device the device itself, of anything else
    /// the file, nil if it leads nowhere.
    package static func reached(_ path: String) -> (identity: FileIdentity, isBlock: Bool)? {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        guard unsafe stat(path, &found) == 0 else { return nil }
        return reached(found)
    }

    /// Whether a path leads to a regular file.
    package static func isRegularFile(_ path: String) -> Bool {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        return unsafe stat(path, &found) == 0 && found.st_mode & S_IFMT == S_IFREG
    }

    /// The number of an open regular file, and when it was last changed; nil if it is none.
    package static func fileState(
        _ descriptor: Int32
    ) -> (inode: UInt64, changedNanoseconds: UInt64)? {
        var found = stat()
        // SAFETY: the kernel fills the local during the call.
        guard unsafe fstat(descriptor, &found) == 0, found.st_mode & S_IFMT == S_IFREG else {
            return nil
        }
        let seconds = UInt64(truncatingIfNeeded: found.st_ctim.tv_sec) &* 1_000_000_000
        return (
            UInt64(found.st_ino),
            seconds &+ UInt64(truncatingIfNeeded: found.st_ctim.tv_nsec)
        )
    }

    /// What an open file is, as `reached` of its path says it.
    package static func reached(
        _ descriptor: borrowing Descriptor
    ) throws(Failure) -> (identity: FileIdentity, isBlock: Bool) {
        var found = stat()
        // SAFETY: the kernel fills the local during the call.
        guard unsafe fstat(descriptor.raw, &found) == 0 else {
            throw Failure(call: "fstat", number: errno)
        }
        return reached(found)
    }

    private static func reached(_ found: stat) -> (identity: FileIdentity, isBlock: Bool) {
        guard found.st_mode & S_IFMT == S_IFBLK else {
            return (
                FileIdentity(device: UInt64(found.st_dev), inode: UInt64(found.st_ino)), false
            )
        }
        return (FileIdentity(device: UInt64(found.st_rdev), inode: 0), true)
    }
}
