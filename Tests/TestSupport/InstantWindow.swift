/// The time between asking for a backup job and its answer, in which its instant lies.
///
/// What finished before the window opened is in the point in time; what started after it closed
/// is not. Commands that were in flight meanwhile may be in or out, but writes wholly
/// per 64 KiB and others wholly per cluster, and so that one cut through the writer's clock
/// explains all disks.
package final class InstantWindow {
    /// The server's clusters: a long zeroing or trim may be between two of them when a job begins.
    private static let clusterBytes = 1 << 14
    /// The aligned pieces of which a write in flight at the instant is wholly in or wholly out.
    private static let pieceBytes = 1 << 16

    /// The same for any command.
    private static func pieceBytes(of operation: StressOperation) -> Int {
        operation.kind == .write ? pieceBytes : clusterBytes
    }

    private let base: [[UInt8]]
    private let openedAt: Int
    /// Commands that were in flight in the window, in their order of start.
    var operations: [StressOperation]
    private var verdicts: [(operation: StressOperation, isIn: Bool)] = []

    init(base: [[UInt8]], openedAt: Int, operations: [StressOperation]) {
        self.base = base
        self.openedAt = openedAt
        self.operations = operations
    }

    /// How many commands the window leaves undecided.
    package var operationCount: Int { operations.count }

    /// Fails unless a pulled image can be the disk at one instant of the window.
    package func verify(disk: Int, image: [UInt8], name: String) throws {
        let base = base[disk]
        guard image.count == base.count else {
            throw TestFailure("\(name) has \(image.count) bytes, the disk \(base.count)")
        }
        let touched = operations.filter { $0.disk == disk && $0.changesData && $0.count > 0 }
        var position = 0
        var pieceVerdicts: [Int: [ObjectIdentifier: Bool]] = [:]
        for segment in segments(touched) {
            try expectBase(base, image, position..<segment.lowerBound, name)
            position = segment.upperBound
            let covering = touched.filter { $0.overlaps(segment.lowerBound, segment.count) }
            let matches = matchingVersions(base, image, segment, covering)
            guard let first = matches.first else {
                let places = firstDifferences(base, image, segment, covering)
                throw TestFailure(
                    "\(name): bytes \(segment) are none of the \(covering.count + 1) contents they"
                        + " had around the instant: before and after \(covering.map(\.summary));"
                        + " each differs first at \(places)")
            }
            guard matches.count == 1 else { continue }
            for (index, operation) in covering.enumerated() {
                let isIn = index < first
                let piece = segment.lowerBound / Self.pieceBytes(of: operation)
                let known = pieceVerdicts[piece, default: [:]].updateValue(
                    isIn, forKey: ObjectIdentifier(operation))
                if let known, known != isIn {
                    throw TestFailure("\(name): torn at \(segment): \(operation.summary)")
                }
                verdicts.append((operation, isIn))
            }
        }
        try expectBase(base, image, position..<image.count, name)
    }

    /// Fails unless one cut through time explains everything that was verified so far.
    package func verifyOneInstant() throws {
        var latestIn = openedAt
        for verdict in verdicts where verdict.isIn {
            latestIn = max(latestIn, verdict.operation.startedAt)
        }
        for verdict in verdicts where !verdict.isIn {
            if let finished = verdict.operation.finishedAt, finished < latestIn {
                throw TestFailure(
                    "not one instant: \(verdict.operation.summary) finished at \(finished) and is"
                        + " missing, though a command started at \(latestIn) is in")
            }
        }
    }

    /// Cuts the touched ranges into pieces that the same commands touch, none across clusters.
    private func segments(_ touched: [StressOperation]) -> [Range<Int>] {
        var bounds: Set<Int> = []
        for operation in touched {
            bounds.formUnion([operation.offset, operation.end])
            let firstCluster = operation.offset / Self.clusterBytes + 1
            bounds.formUnion(
                stride(
                    from: firstCluster * Self.clusterBytes, to: operation.end,
                    by: Self.clusterBytes))
        }
        let sorted = bounds.sorted()
        return zip(sorted, sorted.dropFirst()).map { $0..<$1 }
    }

    /// The versions that a segment may hold: 0 is the base, N the content after the Nth command.
    private func matchingVersions(
        _ base: [UInt8], _ image: [UInt8], _ segment: Range<Int>, _ covering: [StressOperation]
    ) -> [Int] {
        var matches: [Int] = []
        let start = segment.lowerBound
        if Bytes.isEqual(base, at: start, image, at: start, count: segment.count) {
            matches.append(0)
        }
        for (index, operation) in covering.enumerated() {
            let inside = start - operation.offset
            let same = Bytes.isEqual(
                operation.content, at: inside, image, at: start, count: segment.count)
            if same { matches.append(index + 1) }
        }
        return matches
    }

    /// Where a segment first differs from each version, for the failure's text.
    private func firstDifferences(
        _ base: [UInt8], _ image: [UInt8], _ segment: Range<Int>, _ covering: [StressOperation]
    ) -> [Int] {
        let start = segment.lowerBound
        let versions =
            [(base, start)] + covering.map { ($0.content, segment.lowerBound - $0.offset) }
        return versions.map { bytes, position in
            let first = Bytes.firstDifference(
                bytes, at: position, image, at: start, count: segment.count)
            return start + (first ?? segment.count)
        }
    }

    private func expectBase(_ base: [UInt8], _ image: [UInt8], _ range: Range<Int>, _ name: String)
        throws
    {
        guard
            let difference = Bytes.firstDifference(
                base, at: range.lowerBound, image, at: range.lowerBound, count: range.count)
        else { return }
        throw TestFailure(
            "\(name): byte \(range.lowerBound + difference) is not what it was at the instant")
    }
}

extension StressWriter {
    /// Opens a window: call it right before a job's begin.
    package func openWindow() -> InstantWindow {
        clock += 1
        let window = InstantWindow(
            base: oracle, openedAt: clock, operations: flying.filter(\.changesData))
        windows.append(window)
        return window
    }

    /// Closes a window: call it right after the begin has returned.
    ///
    /// Goes on until every command of the window has finished, so that its contents are known.
    package func closeWindow(_ window: InstantWindow) throws {
        clock += 1
        windows.removeAll { $0 === window }
        try run(timeout: 60) { window.operations.allSatisfy(\.isApplied) }
    }
}
