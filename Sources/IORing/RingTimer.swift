import CLinux
import Glibc
package import SystemLayer

/// A descriptor that becomes readable at a fixed period: the clock tick of a ring.
package struct PeriodicTimer: ~Copyable {
    private let descriptor: OwnedDescriptor
    package var raw: Int32 { descriptor.raw }

    /// Starts ticking at once.
    ///
    /// Period in milliseconds.
    package init(milliseconds: Int) throws(SystemFault) {
        let number = try SystemFault.check("timerfd_create") {
            timerfd_create(CLOCK_MONOTONIC, Int32(TFD_NONBLOCK | TFD_CLOEXEC))
        }
        let owned = OwnedDescriptor(adopting: number)
        let period = timespec(
            tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
        var setting = itimerspec(it_interval: period, it_value: period)
        // SAFETY: the kernel copies the local; it keeps no pointer.
        _ = try SystemFault.check("timerfd_settime") {
            unsafe timerfd_settime(number, 0, &setting, nil)
        }
        descriptor = owned
    }

    /// Takes the ticks that have passed, so that the descriptor is unreadable until the next.
    package func consume() {
        var count: UInt64 = 0
        // SAFETY: eight bytes are read into an eight-byte local.
        unsafe _ = read(descriptor.raw, &count, 8)
    }
}
