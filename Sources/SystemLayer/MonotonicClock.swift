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

    /// Nanoseconds since the machine was started, time that it slept included; every process of a
    /// boot sees the same clock.
    package static func sinceBoot() -> UInt64 { read(CLOCK_BOOTTIME) }

    /// Nanoseconds since 1970, by the clock that files' times are taken from.
    package static func wallTime() -> UInt64 { read(CLOCK_REALTIME) }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        // SAFETY: the kernel fills the local that the pointer names; it does not keep the pointer.
        unsafe clock_gettime(clock, &time)
        return UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
    }
}
