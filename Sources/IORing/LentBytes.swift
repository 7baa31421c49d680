import Glibc
import SystemLayer

/// A range of an arena that a thread without a ring may read, as long as its lender keeps it
/// allocated.
// SAFETY (unchecked Sendable): the memory is mapped while the arena lives, and the lender does not
// write it before the borrower has said that it is through.
@safe
package struct LentBytes: @unchecked Sendable {
    private let start: UnsafeRawPointer
    package let count: Int

    fileprivate init(start: UnsafeRawPointer, count: Int) {
        unsafe self.start = unsafe start
        self.count = count
    }

    /// Where the bytes lie, as a number.
    package var address: UInt { unsafe UInt(bitPattern: start) }

    /// The bytes as they are now.
    package func copy() -> [UInt8] {
        // SAFETY: the range was checked when it was lent, and stays allocated until its lender is
        // told.
        unsafe Array(UnsafeRawBufferPointer(start: start, count: count))
    }

    /// Writes the bytes to a file; may wait for the device.
    ///
    /// Returns nil when all are written, or the positive errno; ENOSPC where the file takes no
    /// more.
    package func write(to descriptor: Int32, at position: UInt64) -> Int32? {
        var done = 0
        while done < count {
            // SAFETY: the range was checked when it was lent.
            let result = unsafe pwrite(
                descriptor, start + done, count - done, off_t(position) + off_t(done))
            if result > 0 {
                done += result
            } else if result == 0 {
                return ENOSPC
            } else if errno != EINTR && errno != EAGAIN {
                return errno
            }
        }
        return nil
    }
}

extension BufferArena {
    /// Lends a range to another thread; it stays allocated until that one is through.
    package borrowing func lend(_ offset: Int, count: Int) -> LentBytes {
        // SAFETY: pointer() checks the range.
        unsafe LentBytes(start: UnsafeRawPointer(pointer(offset, count)), count: count)
    }
}
