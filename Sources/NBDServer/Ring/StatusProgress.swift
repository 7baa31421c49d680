import Core
import Disk
import NBDProtocol
import PointInTime
import Tracking
import Upstream

/// How far the block status request of a connection has come.
struct StatusProgress {
    /// Values of `base:allocation` (NBD protocol, "base:allocation").
    private enum Allocation {
        static let data: UInt32 = 0
        /// Reads as zeros, and nothing is said about how it is kept.
        static let zero: UInt32 = 2
        static let holeAndZero: UInt32 = 3
    }

    /// How far the contexts of a request have come.
    enum Pass {
        /// Several contexts are asked for: how far do the bitmaps' extents fit a reply?
        case measuring
        case answering
    }

    /// Next byte to look up.
    var position: UInt64 = 0
    /// The last lookup: what lies from `position` to `knownEnd` of the source.
    private var knownEnd: UInt64 = 0
    private var knownIsData = false
    /// Allocation answered in advance.
    private var map = AllocationMap()
    /// What an upstream has told of what follows `knownEnd`.
    private var told: ArraySlice<UpstreamExtent> = []
    /// An upstream is being asked.
    var isAsking = false
    var isGathered = false
    var extents = ExtentRoom()
    /// The contexts that are to be answered.
    var asked = ContextSet()
    /// Which of the connection's contexts is being answered.
    var contextIndex = 0
    var pass = Pass.answering
    /// Where the reply ends, in every context: clients add up the extents of each by itself, so all
    /// of them cover the same bytes.
    private(set) var end: UInt64 = 0

    /// Begins a request.
    mutating func start(_ valid: ValidRequest, asked: ContextSet) {
        self.asked = asked
        contextIndex = 0
        end = valid.offset + valid.length
        // Of single extents nobody expects the same length.
        pass = asked.count > 1 && !valid.flags.contains(.reqOne) ? .measuring : .answering
        startContext(at: valid.offset)
    }

    /// The bitmaps have been measured: now the contexts are answered, from the first one on.
    mutating func startAnswering(at offset: UInt64) {
        pass = .answering
        contextIndex = 0
        startContext(at: offset)
    }

    /// Begins with a context's extents.
    mutating func startContext(at offset: UInt64) {
        position = offset
        knownEnd = offset
        knownIsData = true
        isGathered = false
        extents.removeAll()
        // A write that was answered before this request came must be seen.
        map.removeAll()
        told = []
    }

    /// Whether an upstream has to be asked before allocation can be gathered.
    var needsTelling: Bool { !isGathered && knownEnd <= position && told.isEmpty && position < end }

    /// An upstream has told what lies from `position` on; nothing: all of it is data.
    mutating func tell(_ extents: [UpstreamExtent]) {
        isAsking = false
        told = extents.filter { $0.count > 0 }[...]
        if told.isEmpty, position < end {
            told = [UpstreamExtent(count: end - position, isData: true)]
        }
    }

    /// Ends the gathering when the reply's extents are all there.
    mutating func endIfComplete(_ valid: ValidRequest, hasLongExtents: Bool) {
        let isFirstKnown =
            valid.flags.contains(.reqOne) && extents.hasFirst(isLong: hasLongExtents)
        guard position == end || extents.isFull || isFirstKnown else { return }
        // What did not fit any more is left to the next request.
        if !valid.flags.contains(.reqOne) { end = valid.offset + extents.coveredBytes }
        isGathered = true
    }

    /// One turn of gathering allocation, for a backup export under the job's ledger.
    ///
    /// What was answered in advance is older than the ledger's entry, as the rule of reads demands.
    mutating func gatherAllocation<IO: RingIO & ~Copyable>(
        _ valid: ValidRequest, of source: RawSource, asking io: inout IO,
        under ledger: LedgerView?, changes: [FrozenBitmap], hasLongExtents: Bool
    ) {
        // Of a single extent nothing is gained by having more of them told.
        let isAhead = !valid.flags.contains(.reqOne)
        var lookups = Limits.lookupsPerTurn
        for _ in 0..<Limits.runsPerTurn {
            endIfComplete(valid, hasLongExtents: hasLongExtents)
            if isGathered { return }
            if knownEnd <= position, source.remote?.tellsAllocation ?? false {
                guard let extent = told.popFirst() else { return }
                knownIsData = extent.isData
                knownEnd = position + min(extent.count, end - position)
            } else if knownEnd <= position {
                guard lookups > 0 else { return }
                let run = io.allocation(
                    of: source, at: position, end: end,
                    endsHole: knownEnd == position && !knownIsData,
                    ahead: isAhead, map: &map)
                knownIsData = run.isData
                knownEnd = run.end
                lookups -= run.lookups
            }
            addKnown(ledger, changes)
        }
    }

    private mutating func addKnown(_ ledger: LedgerView?, _ changes: [FrozenBitmap]) {
        let end = ledger == nil ? knownEnd : min(knownEnd, position + Limits.ledgerBytesPerRun)
        let extent = PointInTimeRead.extent(position..<end, isData: knownIsData, under: ledger)
        guard !extent.isData else { return add(extent.count, Allocation.data) }
        let (count, isChanged) = Self.sameChange(position..<(position + extent.count), changes)
        add(count, isChanged ? Allocation.zero : Allocation.holeAndZero)
    }

    private mutating func add(_ count: UInt64, _ flags: UInt32) {
        extents.append(length: count, flags: flags)
        position += count
    }

    /// How much of a range, from its first byte on, was changed since a bitmap's checkpoint, or was
    /// not.
    ///
    /// Zeros that are a change are no hole: tools leave holes out of an incremental backup, and the
    /// restored disk would have the old bytes there.
    private static func sameChange(
        _ range: Range<UInt64>, _ changes: [FrozenBitmap]
    ) -> (count: UInt64, isChanged: Bool) {
        var end = range.upperBound
        var isChanged = false
        for change in changes {
            let shift = change.granularityShift
            let run = change.bitmap.run(
                from: Int(range.lowerBound >> shift), through: Int((end - 1) >> shift))
            isChanged = isChanged || run.isDirty
            end = min(end, UInt64(run.end) << shift)
        }
        return (end - range.lowerBound, isChanged)
    }
}
