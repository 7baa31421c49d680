import CLinux
import Glibc

/// Time that never goes back, for deadlines and statistics.
package enum MonotonicClock {
    /// Nanoseconds since an arbitrary start.
    package static func now() -> UInt64 {
        var time = timespec()
        // SAFETY: the kernel fills the local that the pointer names; it does not keep the pointer.
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
