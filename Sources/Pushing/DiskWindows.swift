import Synchronization

/// Cuts a disk into windows, each of which one thread takes.
final class DiskWindows: Sendable {
    /// A multiple of every unit.
    static let windowBytes: UInt64 = 16 << 20

    private let sizeBytes: UInt64
    private let next = Mutex<UInt64>(0)

    init(sizeBytes: UInt64) { self.sizeBytes = sizeBytes }

    /// The next window; nil when there is none.
    func take() -> Range<UInt64>? {
        next.withLock { next in
            guard next < sizeBytes else { return nil }
            let start = next
            next = min(sizeBytes, start + Self.windowBytes)
            return start..<next
        }
    }
}
