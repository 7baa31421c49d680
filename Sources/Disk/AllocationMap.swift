import SystemLayer

/// What lies at a place of a source, and what it took to find out.
package struct AllocationRun: Sendable, Equatable {
    /// Data, or a hole that reads as zeros.
    package let isData: Bool
    /// Where that ends; later than the position asked about, at most the end asked for.
    package let end: UInt64
    /// Time that the answer took, in lookups of a single place: none where the answer was known.
    package let lookups: Int

    package init(isData: Bool, end: UInt64, lookups: Int) {
        self.isData = isData
        self.end = end
        self.lookups = lookups
    }
}

/// What a file system told about a stretch of a source with one call, so that the next answers come
/// from memory.
///
/// It is as old as that call. The caller says from when on an answer must be right by emptying
/// it (`removeAll`) then.
package struct AllocationMap: Sendable {
    private enum Content {
        case data, hole
        /// Behind the file's end: it was cut short.
        case lost
        /// Reserved space: the page cache is to be asked.
        case undecided
    }

    /// A call that tells many extents is counted as this many lookups of a single place.
    package static let lookupsPerCall = FileExtents.countMax / 2

    private var extents = FileExtents()
    /// What the extents tell about.
    ///
    /// The start follows the positions asked for: earlier ones are asked about anew.
    private var told: Range<UInt64> = 0..<0
    /// Where the file ended when it was asked about.
    private var fileEnd: UInt64 = 0
    /// The first extent that can reach to the start of `told`.
    private var next = 0
    /// The file system did not say, or something that is not understood.
    private var isRefused = false

    package init() {}

    /// Forgets everything; the next question goes to the file system.
    package mutating func removeAll() {
        told = 0..<0
        isRefused = false
    }

    /// What lies at `position` of a file on ext4, and where that ends (at most `end`): nil when
    /// only a lookup of the single place can tell, up to `undecidedEnd` at least.
    fileprivate mutating func run(
        of descriptor: Int32, at position: UInt64, end: UInt64, undecidedEnd: inout UInt64
    ) -> AllocationRun? {
        guard !isRefused else { return nil }
        var lookups = 0
        if !told.contains(position) {
            lookups = Self.lookupsPerCall
            guard read(descriptor, from: position, to: end) else {
                isRefused = true
                return nil
            }
        }
        let known = content(at: position)
        let knownEnd = min(known.end, end)
        switch known.content {
        case .data, .lost: return AllocationRun(isData: true, end: knownEnd, lookups: lookups)
        case .hole: return AllocationRun(isData: false, end: knownEnd, lookups: lookups)
        case .undecided:
            undecidedEnd = knownEnd
            return nil
        }
    }

    /// Has a stretch told, the longest from `start` on; false unless every part of it is
    /// understood.
    private mutating func read(
        _ descriptor: Int32, from start: UInt64, to end: UInt64
    ) -> Bool {
        told = 0..<0
        next = 0
        guard extents.read(descriptor, from: start, to: end),
            let size = try? FileCalls.facts(descriptor).sizeBytes
        else { return false }
        fileEnd = size
        var reached: UInt64 = 0
        for index in 0..<extents.count {
            // What is no extent will be called a hole, so nothing may be left unexplained.
            guard let extent = extents[index], extent.start >= reached, extent.end > extent.start
            else { return false }
            reached = extent.end
        }
        let toldEnd = extents.count < FileExtents.countMax ? end : min(reached, end)
        guard toldEnd > start else { return false }
        told = start..<toldEnd
        return true
    }

    /// What was told about a position within `told`.
    private mutating func content(at position: UInt64) -> (content: Content, end: UInt64) {
        told = position..<told.upperBound
        guard position < fileEnd else { return (.lost, told.upperBound) }
        let holeEnd = min(told.upperBound, fileEnd)
        while next < extents.count {
            guard let extent = extents[next] else {
                preconditionFailure("extents are looked through when they are told")
            }
            if extent.end <= position {
                next += 1
                continue
            }
            if extent.start > position { return (.hole, min(extent.start, holeEnd)) }
            let content = extent.state == .data ? Content.data : .undecided
            return (content, min(extent.end, told.upperBound))
        }
        return (.hole, holeEnd)
    }
}

extension RawSource {
    /// The same as `allocation(at:end:endsHole:)`, for callers that go on from answer to answer:
    /// where the file system tells many extents at once, the map keeps them.
    ///
    /// On ext4 a hole between extents is what a lookup would find, as both ask the same code of the
    /// kernel. Reserved space may hold bytes in the page cache, so that it is looked up. `ahead`
    /// says that more answers will be asked for.
    package func allocation(
        at position: UInt64, end: UInt64, endsHole: Bool, ahead: Bool, mayWait: Bool = true,
        map: inout AllocationMap
    ) -> AllocationRun {
        precondition(position < end)
        var lookupEnd = end
        if ahead, holes == .extents, mayWait || !isStalled {
            let run = map.run(of: raw, at: position, end: end, undecidedEnd: &lookupEnd)
            if let run { return run }
        }
        let found = allocation(
            at: position, end: lookupEnd, endsHole: endsHole, mayWait: mayWait)
        return AllocationRun(isData: found.isData, end: found.end, lookups: 1)
    }
}
