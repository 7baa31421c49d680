import Synchronization

/// The memory in which old content is on its way to scratch, one budget for all rings.
///
/// A disk may always have one copy in flight besides: without memory its jobs get slower, and none
/// stops because of others.
final class CopyMemory: Sendable {
    let limitBytes: Int
    private let usedBytes = Atomic<Int>(0)
    private let isAwaited = Atomic<Bool>(false)

    init(limitBytes: Int) { self.limitBytes = limitBytes }

    /// Takes so many bytes; false when they are not there, and then `give` tells when some are.
    func take(_ bytes: Int) -> Bool {
        if takeNow(bytes) { return true }
        isAwaited.store(true, ordering: .sequentiallyConsistent)
        // Some may have been given back between the two steps above.
        return takeNow(bytes)
    }

    private func takeNow(_ bytes: Int) -> Bool {
        var used = usedBytes.load(ordering: .sequentiallyConsistent)
        while used + bytes <= limitBytes {
            let (exchanged, found) = usedBytes.compareExchange(
                expected: used, desired: used + bytes, ordering: .sequentiallyConsistent)
            if exchanged { return true }
            used = found
        }
        return false
    }

    /// Gives bytes back; true when a ring may wait for them.
    func give(_ bytes: Int) -> Bool {
        usedBytes.subtract(bytes, ordering: .sequentiallyConsistent)
        // Read first: nearly always nobody waits.
        return isAwaited.load(ordering: .sequentiallyConsistent)
            && isAwaited.exchange(false, ordering: .sequentiallyConsistent)
    }
}
