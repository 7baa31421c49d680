import Glibc

/// What somebody has who is about to let go of it: a file, a device or a lock of a process that was
/// killed, or of a call that has just ended.
package enum InUse {
    /// Does something again until it succeeds, fails for another reason than that it is in use, or
    /// the time is over; the last error is thrown.
    ///
    /// The calling thread waits.
    package static func outwait<Value: ~Copyable, Fault: Error>(
        nanoseconds: UInt64, while isInUse: (Fault) -> Bool, _ body: () throws(Fault) -> Value
    ) throws(Fault) -> Value {
        let end = MonotonicClock.now() + nanoseconds
        while true {
            do throws(Fault) {
                return try body()
            } catch {
                guard isInUse(error), MonotonicClock.now() < end else { throw error }
                usleep(lookMicroseconds)
            }
        }
    }

    /// Between two attempts.
    private static let lookMicroseconds: UInt32 = 10_000
}
