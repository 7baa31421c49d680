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

/// What a backup holds of a window, in whole units.
struct WindowContent {
    /// A run of neighbouring units of one kind.
    struct Run {
        var offset: UInt64
        var count: Int
        /// Known to read as zeros.
        var isZero: Bool
    }

    private(set) var runs: [Run] = []

    /// Asks the source.
    ///
    /// Only what its bitmap counts as changed is content; without one, all of it.
    init(
        _ window: Range<UInt64>, of source: NBDPeer, bitmap: String?, unitBytes: Int
    ) throws(PushFailure) {
        let unit = UInt64(unitBytes)
        let count = Int((window.upperBound - window.lowerBound + unit - 1) / unit)
        var isContent = [Bool](repeating: bitmap == nil, count: count)
        var isData = [Bool](repeating: false, count: count)
        let contexts = [Self.allocation] + (bitmap.map { [$0] } ?? [])
        let found = try source.extents(
            at: window.lowerBound, count: Int(window.upperBound - window.lowerBound),
            contexts: contexts)
        func mark(_ extent: NBDPeer.Extent, _ units: inout [Bool]) {
            let start = max(extent.offset, window.lowerBound) - window.lowerBound
            let end = min(extent.offset + extent.count, window.upperBound) - window.lowerBound
            guard start < end else { return }
            for index in Int(start / unit)...Int((end - 1) / unit) { units[index] = true }
        }
        for extent in found[Self.allocation] ?? [] where extent.flags & 2 == 0 {
            mark(extent, &isData)
        }
        if let bitmap {
            for extent in found[bitmap] ?? [] where extent.flags & 1 != 0 {
                mark(extent, &isContent)
            }
        }
        for index in 0..<count where isContent[index] {
            let offset = window.lowerBound + UInt64(index) * unit
            let bytes = Int(min(unit, window.upperBound - offset))
            if let last = runs.last, last.isZero != isData[index],
                last.offset + UInt64(last.count) == offset
            {
                runs[runs.count - 1].count += bytes
            } else {
                runs.append(Run(offset: offset, count: bytes, isZero: !isData[index]))
            }
        }
    }

    static let allocation = "base:allocation"
}
