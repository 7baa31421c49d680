import NBDProtocol
import PointInTime

/// Plain facts of what a connection reads, copied here so that the data path touches no shared
/// object.
///
/// The objects behind the handles are kept alive by the connection's `target`.
struct ReadPath {
    var source: FileHandle
    /// The export's number.
    var export: UInt64 = 0
    /// 1 through the page cache, else what O_DIRECT needs.
    var alignment: Int
    var sourceNeverWaits: Bool
    /// Where the source ends, in bytes: a read with O_DIRECT ends there, too, whatever its
    /// alignment.
    var sizeBytes: UInt64 = 0
    /// What was not in the page cache does not stay there: a backup is read once.
    var dropsBehind = false
    /// Present on backup exports.
    var preserved: PreservedPath?
    /// Pages of the source may be handed to this peer without a copy.
    var sourceByReference = false
    /// Pages of the scratch may.
    var scratchByReference = false
    /// Allocation is told by an upstream, which has to be asked.
    var asksUpstream = false
    /// Where a client's reads leave their mark, for people to see.
    var readCells: ReadCells?

    var isDirect: Bool { alignment > 1 }
    var sendsByReference: Bool { sourceByReference || scratchByReference }
    var ledger: LedgerView? { preserved?.ledger }
}

/// Where a backup export finds what the source had at the instant.
struct PreservedPath {
    let ledger: LedgerView
    let scratch: FileHandle
    let neverWaits: Bool
    /// Asked after each read of scratch whether what was written there is still there; nil where
    /// nothing can be lost.
    let witness: FileHandle?
}

/// A connection with its export: requests come, replies go.
struct Transmission {
    /// Nil before there is one, and when the connection has left it.
    var target: ExportTarget?
    var reader: RequestReader?
    var replies = ReplyEncoder(.simple)
    var contexts: [SelectedContext] = []
    /// Present with the target.
    var path: ReadPath?
    /// Slot of the home disk when the connection may write.
    var disk: DiskIndex?
    var requestCount = 0
    /// The request that is still being cut into pieces; no other is parsed before.
    var current: RequestIndex?
    var status = StatusProgress()
    /// Where the path drops behind.
    var coldWindows: ColdWindows?
    /// Bytes read that the job's figure does not have yet.
    var unreportedBytes: UInt64 = 0
    /// Pages of the arena taken by requests and replies.
    var bufferPages = 0
    /// The last turn stopped for want of room; sending gives some back.
    var isBlocked = false
}
