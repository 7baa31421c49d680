import CLinux
import Glibc
package import SystemLayer

/// Reads and writes of the ring's own thread, past its queue.
extension FileCalls {
    /// Reads a file range into the arena at once.
    ///
    /// With `mayWait` false only what the page cache holds is read.
    ///
    /// Returns the bytes read, which may be fewer than asked for, or the negative errno (EAGAIN:
    /// nothing is resident).
    package static func read(
        _ descriptor: Int32, into arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait: Bool
    ) -> Int {
        while true {
            // SAFETY: pointer() checks the range; the call returns before the arena can go away.
            var vector = unsafe iovec(iov_base: arena.pointer(offset, count), iov_len: count)
            let result = unsafe preadv2(
                descriptor, &vector, 1, off_t(filePosition), mayWait ? 0 : nbdpull_RWF_NOWAIT)
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }

    /// Writes a range of the arena to a file at once; returns the bytes written, which may be
    /// fewer, or the negative errno.
    package static func write(
        _ descriptor: Int32, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int {
        while true {
            // SAFETY: pointer() checks the range; the call returns before the arena can go away.
            let result = unsafe pwrite(
                descriptor, arena.pointer(offset, count), count, off_t(filePosition))
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }
}
