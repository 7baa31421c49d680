import CLinux
import Glibc

/// Counts wake-ups for one thread that sleeps while there are none.
///
/// Made of a semaphore, not of a descriptor: there may be thousands.
@safe
package final class WakeCount: Sendable {
    // SAFETY: allocated in init, used by calls made for many threads, freed in deinit, when no
    // thread can be waiting any more because a waiter holds this object.
    private nonisolated(unsafe) let semaphore: UnsafeMutablePointer<sem_t>

    package init() {
        unsafe semaphore = .allocate(capacity: 1)
        unsafe sem_init(semaphore, 0, 0)
    }

    deinit {
        unsafe sem_destroy(semaphore)
        unsafe semaphore.deallocate()
    }

    /// Wakes the thread once.
    package func signal() { unsafe _ = sem_post(semaphore) }

    /// Takes one wake-up, or waits for it.
    package func wait() {
        while unsafe sem_wait(semaphore) != 0 {}
    }

    /// Takes one wake-up, or waits for it; false when the time is over first.
    package func wait(milliseconds: Int32) -> Bool {
        var deadline = timespec()
        // SAFETY: `deadline` outlives the calls it is handed to.
        unsafe clock_gettime(CLOCK_MONOTONIC, &deadline)
        let nanoseconds = deadline.tv_nsec + Int(milliseconds) % 1000 * 1_000_000
        deadline.tv_sec += Int(milliseconds) / 1000 + nanoseconds / 1_000_000_000
        deadline.tv_nsec = nanoseconds % 1_000_000_000
        while unsafe sem_clockwait(semaphore, CLOCK_MONOTONIC, &deadline) != 0 {
            if errno != EINTR { return false }
        }
        return true
    }
}
