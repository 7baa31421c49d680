import CLinux
import Glibc

/// Locks on single bytes of a file that belong to the open file, not to the process (OFD locks).
///
/// qemu tells the users of an image apart by such locks on bytes far beyond any header; taking part
/// in the same scheme keeps qemu and us from writing one file at once.
package enum ByteRangeLock {
    /// Takes a shared lock on one byte.
    package static func share(_ descriptor: Int32, byte: UInt64) throws(SystemFault) {
        var lock = description(F_RDLCK, byte)
        // SAFETY: the kernel reads the local during the call only.
        _ = try SystemFault.check("fcntl F_OFD_SETLK") {
            unsafe nbdpull_fcntl_lock(descriptor, nbdpull_F_OFD_SETLK, &lock)
        }
    }

    /// Whether another open file holds any lock on the byte.
    package static func isHeldByOther(
        _ descriptor: Int32, byte: UInt64
    ) throws(SystemFault) -> Bool {
        var lock = description(F_WRLCK, byte)
        // SAFETY: the kernel reads and fills the local during the call only.
        _ = try SystemFault.check("fcntl F_OFD_GETLK") {
            unsafe nbdpull_fcntl_lock(descriptor, nbdpull_F_OFD_GETLK, &lock)
        }
        return lock.l_type != Int16(F_UNLCK)
    }

    private static func description(_ type: Int32, _ byte: UInt64) -> flock {
        flock(
            l_type: Int16(type), l_whence: Int16(SEEK_SET), l_start: off_t(byte), l_len: 1,
            l_pid: 0)
    }
}
