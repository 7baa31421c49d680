import ServerInterface
import Synchronization

/// The figures as the ring last gave them: it counts for itself, and writes here now and then.
final class PublishedFigures: Sendable {
    private let readRequests = Atomic<UInt64>(0)
    private let readBytes = Atomic<UInt64>(0)
    private let writeRequests = Atomic<UInt64>(0)
    private let writeBytes = Atomic<UInt64>(0)
    private let flushRequests = Atomic<UInt64>(0)
    private let copyWaits = Mutex(DurationHistogram())

    /// Called by the disk's home ring only.
    func publish(_ figures: GuestFigures) {
        readRequests.store(figures.readRequests, ordering: .relaxed)
        readBytes.store(figures.readBytes, ordering: .relaxed)
        writeRequests.store(figures.writeRequests, ordering: .relaxed)
        writeBytes.store(figures.writeBytes, ordering: .relaxed)
        flushRequests.store(figures.flushRequests, ordering: .relaxed)
        // A reader that is at it just now sees the next ones.
        _ = copyWaits.withLockIfAvailable { $0 = figures.copyWaits }
    }

    var value: GuestFigures {
        var figures = GuestFigures()
        figures.readRequests = readRequests.load(ordering: .relaxed)
        figures.readBytes = readBytes.load(ordering: .relaxed)
        figures.writeRequests = writeRequests.load(ordering: .relaxed)
        figures.writeBytes = writeBytes.load(ordering: .relaxed)
        figures.flushRequests = flushRequests.load(ordering: .relaxed)
        figures.copyWaits = copyWaits.withLock { $0 }
        return figures
    }
}
