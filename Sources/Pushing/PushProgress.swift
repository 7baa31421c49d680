import Glibc
import Synchronization

/// What the threads of a copy share: how far it has come, its limit, and its first failure.
final class PushProgress: Sendable {
    /// Bytes written, of the backup's content.
    let bytes = Atomic<UInt64>(0)
    let total = Atomic<UInt64>(0)
    /// Grows whenever something has been achieved, be it a wait that the limit asks for.
    let beats = Atomic<UInt64>(0)
    /// Bytes a second, zero for none.
    private let limit = Atomic<UInt64>(0)
    private let nextNanoseconds = Mutex<UInt64>(0)
    private let failure = Mutex<PushFailure?>(nil)

    init(bytesPerSecond: UInt64?) {
        limit.store(bytesPerSecond ?? 0, ordering: .relaxed)
    }

    func setLimit(_ bytesPerSecond: UInt64) { limit.store(bytesPerSecond, ordering: .relaxed) }

    func beat() { beats.add(1, ordering: .relaxed) }

    func note(written count: Int) {
        bytes.add(UInt64(count), ordering: .relaxed)
        beat()
    }

    func fail(_ reason: PushFailure) {
        failure.withLock { known in if known == nil { known = reason } }
    }

    var firstFailure: PushFailure? { failure.withLock { $0 } }

    /// Waits until the limit allows so many more bytes, or the copy has failed.
    func await(_ count: Int) {
        let rate = limit.load(ordering: .relaxed)
        guard rate > 0 else { return }
        let cost = UInt64(min(Double(count) / Double(rate) * 1e9, 3.6e12))
        let start = nextNanoseconds.withLock { next in
            // What was not used before is not made up for.
            let start = max(next, Self.now())
            next = start &+ cost
            return start
        }
        while firstFailure == nil {
            let now = Self.now()
            guard now < start else { return }
            usleep(UInt32(min((start - now) / 1000 + 1, 200_000)))
            beat()
        }
    }

    private static func now() -> UInt64 {
        var time = timespec()
        // SAFETY: the kernel fills the local during the call only.
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
    }
}
