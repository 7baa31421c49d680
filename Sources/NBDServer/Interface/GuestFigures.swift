import NBDProtocol
import Synchronization

/// What machines have asked of a disk since it was attached: requests that were valid, answered or
/// not.
package struct GuestFigures: Sendable, Hashable {
    package var readRequests: UInt64 = 0
    package var readBytes: UInt64 = 0
    package var writeRequests: UInt64 = 0
    /// What is to be trimmed or zeroed counts as written: it changes the disk.
    package var writeBytes: UInt64 = 0
    package var flushRequests: UInt64 = 0

    package init() {}

    mutating func count(_ command: Command, _ bytes: UInt64) {
        switch command {
        case .read:
            readRequests &+= 1
            readBytes &+= bytes
        case .write, .trim, .writeZeroes:
            writeRequests &+= 1
            writeBytes &+= bytes
        case .flush: flushRequests &+= 1
        case .cache, .blockStatus, .disconnect: break
        }
    }
}

/// The figures as the ring last gave them: it counts for itself, and writes here now and then.
final class PublishedFigures: Sendable {
    private let readRequests = Atomic<UInt64>(0)
    private let readBytes = Atomic<UInt64>(0)
    private let writeRequests = Atomic<UInt64>(0)
    private let writeBytes = Atomic<UInt64>(0)
    private let flushRequests = Atomic<UInt64>(0)

    /// Called by the disk's home ring only.
    func publish(_ figures: GuestFigures) {
        readRequests.store(figures.readRequests, ordering: .relaxed)
        readBytes.store(figures.readBytes, ordering: .relaxed)
        writeRequests.store(figures.writeRequests, ordering: .relaxed)
        writeBytes.store(figures.writeBytes, ordering: .relaxed)
        flushRequests.store(figures.flushRequests, ordering: .relaxed)
    }

    var value: GuestFigures {
        var figures = GuestFigures()
        figures.readRequests = readRequests.load(ordering: .relaxed)
        figures.readBytes = readBytes.load(ordering: .relaxed)
        figures.writeRequests = writeRequests.load(ordering: .relaxed)
        figures.writeBytes = writeBytes.load(ordering: .relaxed)
        figures.flushRequests = flushRequests.load(ordering: .relaxed)
        return figures
    }
}
