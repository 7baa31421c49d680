import CLinux
import Glibc

/// Lets one thread wait until a number of others have reported.
///
/// Made of a lock and a condition, not of a descriptor: control still works when those have run
/// out.
@safe
package final class Latch: Sendable {
    // SAFETY: all four are allocated in init, used under the lock only, and freed in deinit, when
    // no thread can be waiting any more because a waiter holds this object.
    private nonisolated(unsafe) let lock: UnsafeMutablePointer<pthread_mutex_t>
    private nonisolated(unsafe) let condition: UnsafeMutablePointer<pthread_cond_t>
    private nonisolated(unsafe) let missing: UnsafeMutablePointer<Int>
    private nonisolated(unsafe) let handlers: UnsafeMutablePointer<[@Sendable () -> Void]>

    /// `count` reports are awaited.
    package init(count: Int) {
        precondition(count >= 0)
        unsafe lock = .allocate(capacity: 1)
        unsafe condition = .allocate(capacity: 1)
        unsafe missing = .allocate(capacity: 1)
        unsafe missing.initialize(to: count)
        unsafe handlers = .allocate(capacity: 1)
        unsafe handlers.initialize(to: [])
        unsafe pthread_mutex_init(lock, nil)
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(condition, &attributes)
        unsafe pthread_condattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_cond_destroy(condition)
        unsafe pthread_mutex_destroy(lock)
        unsafe lock.deallocate()
        unsafe condition.deallocate()
        unsafe missing.deallocate()
        unsafe handlers.deinitialize(count: 1)
        unsafe handlers.deallocate()
    }

    /// Reports once.
    package func arrive() {
        // SAFETY: as said at the fields.
        unsafe pthread_mutex_lock(lock)
        unsafe missing.pointee -= 1
        precondition(unsafe missing.pointee >= 0, "more reports than awaited")
        var told: [@Sendable () -> Void] = []
        if unsafe missing.pointee == 0 {
            unsafe _ = pthread_cond_broadcast(condition)
            unsafe swap(&told, &handlers.pointee)
        }
        unsafe pthread_mutex_unlock(lock)
        for handler in told { handler() }
    }

    /// Runs `handler` once when all have reported: at once when they have, else on the thread of
    /// the last report.
    package func whenReached(_ handler: @escaping @Sendable () -> Void) {
        unsafe pthread_mutex_lock(lock)
        let isReached = unsafe missing.pointee == 0
        if !isReached { unsafe handlers.pointee.append(handler) }
        unsafe pthread_mutex_unlock(lock)
        if isReached { handler() }
    }

    /// Waits for all reports; false when the time is over first.
    ///
    /// A negative time waits for ever.
    package func wait(milliseconds: Int32) -> Bool {
        var deadline = timespec()
        // SAFETY: `deadline` outlives the calls it is handed to; the rest as said at the fields.
        unsafe clock_gettime(CLOCK_MONOTONIC, &deadline)
        let nanoseconds = deadline.tv_nsec + Int(max(milliseconds, 0)) % 1000 * 1_000_000
        deadline.tv_sec += Int(max(milliseconds, 0)) / 1000 + nanoseconds / 1_000_000_000
        deadline.tv_nsec = nanoseconds % 1_000_000_000
        unsafe pthread_mutex_lock(lock)
        defer { unsafe _ = pthread_mutex_unlock(lock) }
        while unsafe missing.pointee > 0 {
            if milliseconds < 0 {
                unsafe _ = pthread_cond_wait(condition, lock)
            } else if unsafe pthread_cond_timedwait(condition, lock, &deadline) == ETIMEDOUT {
                return unsafe missing.pointee == 0
            }
        }
        return true
    }
}
