import CLinux
import Glibc

/// An eventfd: one thread wakes another through it.
package struct EventDescriptor: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor
    package var raw: Int32 { descriptor.raw }

    package init() throws(SystemFault) {
        let number = try SystemFault.check("eventfd") {
            eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
        }
        descriptor = OwnedDescriptor(adopting: number)
    }

    /// Wakes the thread that waits on the descriptor.
    package func signal() {
        var one: UInt64 = 1
        // SAFETY: eight bytes are written from an eight-byte local. A full counter is a wake-up as
        // well.
        unsafe _ = write(descriptor.raw, &one, 8)
    }

    /// Takes the wake-ups that have come.
    package func consume() {
        var count: UInt64 = 0
        // SAFETY: eight bytes are read into an eight-byte local.
        unsafe _ = read(descriptor.raw, &count, 8)
    }

    /// Waits for a wake-up; false when the time is over first.
    ///
    /// A negative time waits for ever.
    package func wait(milliseconds: Int32) -> Bool {
        var request = pollfd(fd: descriptor.raw, events: Int16(POLLIN), revents: 0)
        while true {
            // SAFETY: one pollfd is passed and the count says so.
            let result = unsafe poll(&request, 1, milliseconds)
            if result > 0 { return true }
            if result == 0 { return false }
            // Memory comes back; nothing else can fail.
            if errno != EINTR { usleep(10_000) }
        }
    }
}
