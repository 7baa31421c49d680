import Core
import Disk
import NBDProtocol
import PointInTime

/// How far the block status request of a connection has come.
struct StatusProgress {
    /// Values of `base:allocation` (NBD protocol, "base:allocation").
    private enum Allocation {
        static let data: UInt32 = 0
        static let holeAndZero: UInt32 = 3
    }

    /// Next byte to look up.
    var position: UInt64 = 0
    /// The last lookup: what lies from `position` to `knownEnd` of the source.
    private var knownEnd: UInt64 = 0
    private var knownIsData = false
    /// Allocation told ahead.
    private var map = AllocationMap()
    var isGathered = false
    var extents = ExtentRoom()
    /// The contexts that are to be answered.
    var asked = ContextSet()
    /// Which of the connection's contexts is being answered.
    var contextIndex = 0

    /// Begins with a context's extents.
    mutating func startContext(at offset: UInt64) {
        position = offset
        knownEnd = offset
        knownIsData = true
        isGathered = false
        extents.removeAll()
        // A write that was answered before this request came must be seen.
        map.removeAll()
    }

    /// Ends the gathering when the reply's extents are all there.
    mutating func endIfComplete(_ valid: ValidRequest, hasLongExtents: Bool) {
        let isFirstKnown =
            valid.flags.contains(.reqOne) && extents.hasFirst(isLong: hasLongExtents)
        isGathered =
            position == valid.offset + valid.length || extents.isFull || isFirstKnown
    }

    /// One turn of gathering allocation, for a backup export under the job's ledger.
    ///
    /// What was told ahead is older than the ledger's word on it, as the rule of reads wants.
    mutating func gatherAllocation<IO: RingIO & ~Copyable>(
        _ valid: ValidRequest, of source: RawSource, asking io: inout IO,
        under ledger: LedgerView?, hasLongExtents: Bool
    ) {
        let end = valid.offset + valid.length
        // Of a single extent nothing is gained by having more of them told.
        let isAhead = !valid.flags.contains(.reqOne)
        var lookups = Limits.lookupsPerTurn
        for _ in 0..<Limits.runsPerTurn {
            endIfComplete(valid, hasLongExtents: hasLongExtents)
            if isGathered { return }
            if knownEnd <= position {
                guard lookups > 0 else { return }
                let run = io.allocation(
                    of: source, at: position, end: end,
                    endsHole: knownEnd == position && !knownIsData,
                    ahead: isAhead, map: &map)
                knownIsData = run.isData
                knownEnd = run.end
                lookups -= run.lookups
            }
            addKnown(ledger)
        }
    }

    private mutating func addKnown(_ ledger: LedgerView?) {
        let end = ledger == nil ? knownEnd : min(knownEnd, position + Limits.ledgerBytesPerRun)
        let extent = PointInTimeRead.extent(position..<end, isData: knownIsData, under: ledger)
        extents.append(
            length: extent.count, flags: extent.isData ? Allocation.data : Allocation.holeAndZero)
        position += extent.count
    }
}
