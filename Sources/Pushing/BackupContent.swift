import Synchronization

/// What a backup holds, in whole units, as its source tells.
///
/// It is asked for long stretches: where a file's content lies in memory, to find the end of data costs
/// a kernel as much as there is of it, however short the part that was asked for. A backup does not
/// change, so what was said stays true.
final class BackupContent: Sendable {
    /// A run of neighbouring units of one kind.
    struct Run: Equatable {
        var offset: UInt64
        var count: UInt64
        /// Known to read as zeros.
        var isZero: Bool
        var end: UInt64 { offset + count }
    }

    static let allocation = "base:allocation"
    /// A multiple of every window.
    static let stretchBytes: UInt64 = 1 << 30
    /// Threads that are about to leave a stretch and those that have left it.
    private static let stretchesKept = 2

    private struct Stretch {
        let start: UInt64
        let runs: [Run]
    }

    private let sizeBytes: UInt64
    private let bitmap: String?
    private let unitBytes: Int
    private let progress: PushProgress
    private let stretches = Mutex<[Stretch]>([])

    /// Of a whole disk, or of what a bitmap's context counts as changed.
    init(sizeBytes: UInt64, bitmap: String?, unitBytes: Int, _ progress: PushProgress) {
        self.progress = progress
        self.sizeBytes = sizeBytes
        self.bitmap = bitmap
        self.unitBytes = unitBytes
    }

    /// What there is in a window, which lies in one stretch; asks `source` where that is not known.
    func runs(in window: Range<UInt64>, of source: NBDPeer) throws(PushFailure) -> [Run] {
        let start = window.lowerBound / Self.stretchBytes * Self.stretchBytes
        let stretch = try stretches.withLock { known throws(PushFailure) in
            if let stretch = known.first(where: { $0.start == start }) { return stretch }
            let end = min(start + Self.stretchBytes, sizeBytes)
            let stretch = Stretch(start: start, runs: try ask(start..<end, source))
            if known.count == Self.stretchesKept { known.removeFirst() }
            known.append(stretch)
            return stretch
        }
        return Self.part(of: stretch.runs, in: window)
    }

    /// The parts of runs, which are in order, that lie in a range.
    static func part(of runs: [Run], in range: Range<UInt64>) -> [Run] {
        var (low, high) = (0, runs.count)
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].end > range.lowerBound { high = middle } else { low = middle + 1 }
        }
        var found: [Run] = []
        for run in runs[low...] {
            guard run.offset < range.upperBound else { break }
            let offset = max(run.offset, range.lowerBound)
            let end = min(run.end, range.upperBound)
            found.append(Run(offset: offset, count: end - offset, isZero: run.isZero))
        }
        return found
    }

    private func ask(
        _ range: Range<UInt64>, _ source: NBDPeer
    ) throws(PushFailure) -> [Run] {
        let contexts = [Self.allocation] + (bitmap.map { [$0] } ?? [])
        let found = try source.extents(
            at: range.lowerBound, count: Int(range.upperBound - range.lowerBound),
            contexts: contexts
        ) { progress.beat() }
        return Self.runs(
            in: range, unitBytes: unitBytes, allocation: found[Self.allocation] ?? [],
            changes: bitmap.map { found[$0] ?? [] })
    }

    /// The runs that answers for block status come to: a unit is content, or data, where a part of it
    /// is.
    static func runs(
        in range: Range<UInt64>, unitBytes: Int, allocation: [NBDPeer.Extent],
        changes: [NBDPeer.Extent]?
    ) -> [Run] {
        let unit = UInt64(unitBytes)
        let count = Int((range.upperBound - range.lowerBound + unit - 1) / unit)
        var isContent = [Bool](repeating: changes == nil, count: count)
        var isData = [Bool](repeating: false, count: count)
        func mark(_ extent: NBDPeer.Extent, _ units: inout [Bool]) {
            let start = max(extent.offset, range.lowerBound)
            let end = min(extent.offset + extent.count, range.upperBound)
            guard start < end else { return }
            let first = Int((start - range.lowerBound) / unit)
            let last = Int((end - 1 - range.lowerBound) / unit)
            for index in first...last { units[index] = true }
        }
        for extent in allocation where extent.flags & 2 == 0 { mark(extent, &isData) }
        for extent in changes ?? [] where extent.flags & 1 != 0 { mark(extent, &isContent) }
        var runs: [Run] = []
        for index in 0..<count where isContent[index] {
            let offset = range.lowerBound + UInt64(index) * unit
            let bytes = min(unit, range.upperBound - offset)
            if let last = runs.last, last.isZero != isData[index], last.end == offset {
                runs[runs.count - 1].count += bytes
            } else {
                runs.append(Run(offset: offset, count: bytes, isZero: !isData[index]))
            }
        }
        return runs
    }
}
