import Core
import Disk
import PointInTime
import ServerInterface
import SystemLayer
import Tracking

/// A disk on its home ring: everything that a guest write has to pass.
struct HomeDisk: ~Copyable {
    let export: LiveExport
    /// The export's number.
    let number: UInt64
    let file: FileHandle
    var sizeBytes: UInt64
    /// 1 through the page cache, else what O_DIRECT needs.
    let alignment: Int
    /// Where writes go through the page cache although the rest bypasses it.
    var tailStart: UInt64
    /// What its changes pass, and where they wait.
    var changes: DiskChanges
    /// By job.
    var jobs: [BackupExport?]
    /// Who waits for a job's last operation.
    var detachTickets: [Ticket?]
    /// The actions of `changes` are being performed.
    var isPerforming = false
    /// By copy.
    var copies = [CopyInFlight](repeating: CopyInFlight(), count: CopyBeforeWrite.copiesMax)
    /// Copies that wait for memory, oldest first.
    var waitingCopies: [CopyIndex] = []
    /// The disk is in the ring's list of those that wait for memory.
    var isHungry = false
    /// The buffer that the disk gets in any case is in use.
    var hasOwnBuffer = false
    /// Nil when changes are not tracked.
    var tracking: HomeTracking?

    /// Who waits until the disk is held and quiet.
    var holdTicket: Ticket?
    var inlineWrites = InlineWrites()
    /// Nil where folios make no difference.
    var folioSplits: FolioSplits?

    var figures = GuestFigures()
    /// The front-end that has mapped its guest's memory and may write: nobody else does meanwhile.
    var guest: ConnectionIndex?

    /// What a sync behind the page cache has failed with, or lost writes are told with: from then
    /// on no sync is believed.
    ///
    /// The kernel tells a descriptor once that writes are lost, and takes their pages for clean;
    /// the next sync would succeed and mean nothing.
    var syncErrno: Int32?
    /// The disk has lost writes, and no flush of the guest has failed with it yet.
    var hasUnheardLoss = false
    /// A guest's sync, or durable write, has been under way for long; set and read within a tick.
    var hasHungSync = false

    /// A change of the disk, or anything at all of one that is far, has been under way for long; as
    /// the source has it.
    var isStalled = false
    /// The same, found within a tick.
    var hasStall = false

    // What the source has turned out not to do
    var canPunchHoles: Bool
    var canZeroRanges = true
    /// Only whole units of so many bytes are zeroed otherwise than by writing.
    let zeroingUnit: UInt64

    init(_ export: LiveExport) {
        self.export = export
        number = export.id.number
        file = FileHandle(export.source.raw)
        sizeBytes = export.source.sizeBytes
        alignment = export.source.alignment
        tailStart = export.source.tailStart
        folioSplits = export.source.paysForLargeFolios ? FolioSplits(sizeBytes: sizeBytes) : nil
        canPunchHoles = export.discards
        // A step ends where a cluster does, as a job may begin there.
        zeroingUnit =
            export.source.remote.map {
                $0.zeroingUnit > 1 ? max($0.zeroingUnit, UInt64(ClusterGeometry.clusterBytes)) : 1
            } ?? 1
        changes = DiskChanges(
            changeLimit: Limits.piecesPerRing, hasBlocks: alignment > 1,
            zeroingLimit: Limits.zeroingPerDisk)
        jobs = [BackupExport?](repeating: nil, count: CopyBeforeWrite.jobsMax)
        detachTickets = [Ticket?](repeating: nil, count: CopyBeforeWrite.jobsMax)
    }

    /// The handle by which a range is written; it begins on one side of the tail's start and ends
    /// there.
    func file(forWritingAt offset: UInt64) -> FileHandle {
        offset < tailStart ? file : FileHandle(export.source.tailRaw)
    }

    /// What writes at `offset` are aligned to, in bytes.
    func alignment(forWritingAt offset: UInt64) -> Int { offset < tailStart ? alignment : 1 }

    /// See `Zeroing.wholeUnits`.
    func wholeUnits(_ step: Range<UInt64>) -> (end: UInt64, isWhole: Bool) {
        Zeroing.wholeUnits(step, unit: zeroingUnit, diskEnd: sizeBytes)
    }

    /// Whether a range has a whole unit.
    func hasWholeUnit(_ range: Range<UInt64>) -> Bool {
        let first = wholeUnits(range)
        return first.isWhole
            || first.end < range.upperBound
                && wholeUnits(first.end..<range.upperBound).isWhole
    }

    /// Where a write that begins at `offset` and is to reach `end` has to be cut.
    func writeEnd(from offset: UInt64, to end: UInt64) -> UInt64 {
        offset < tailStart ? min(end, tailStart) : end
    }
}

/// What is asked of `changes` with each copy.
///
/// Asked through a table, the disk lends itself to these calls; `changes` would be copied for each, with
/// a count for everything that it refers to.
extension HomeDisk {
    func clusters(of copy: CopyIndex) -> Range<Int> { changes.clusters(of: copy) }
    func isWanted(_ copy: CopyIndex) -> Bool { changes.isWanted(copy) }
    func waitsForCopy(_ id: ChangeID) -> Bool { changes.waitsForCopy(id) }
    func slotsUsed(by job: JobIndex) -> UInt32 { changes.slotsUsed(by: job) }
    func figures(of job: JobIndex) -> (preserved: Int, zero: Int) { changes.figures(of: job) }
    var hasActiveJobs: Bool { changes.hasActiveJobs }
    var hasWaitingZeroing: Bool { changes.hasWaitingZeroing }
}
