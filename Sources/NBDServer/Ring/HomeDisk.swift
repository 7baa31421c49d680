import Disk
import IORing
import Scratch

/// A disk on its home ring: everything that a guest write has to pass.
struct HomeDisk: ~Copyable {
    let export: LiveExport
    let descriptor: Int32
    var sizeBytes: UInt64
    /// 1 through the page cache, else what O_DIRECT needs.
    let alignment: Int
    var gate: CopyBeforeWrite
    /// By the gate's job number.
    var jobs: [BackupExport?]
    /// Who waits for a job's last operation.
    var detachLatches: [Latch?]
    /// The gate's actions are being performed.
    var isPerforming = false
    /// Arena offset of the copies' buffers, or -1 while no job has been attached.
    var copyBuffers = -1
    /// By task: bytes of its clusters that have been read.
    var copyProgress = [Int](repeating: 0, count: CopyBeforeWrite.tasksMax)
    /// Nil when changes are not tracked.
    var tracking: HomeTracking?

    // Fixing an instant
    var isHeld = false
    var holdLatch: Latch?
    var heldPieces: [Int] = []
    /// Zeroing requests that wait at the start or between two steps: for a job that begins, or for
    /// others to finish.
    var heldRequests: [Int] = []
    /// Zeroing requests at work.
    var zeroingCount = 0
    /// Changes admitted and not complete, those that wait for copies included.
    var changesInFlight = 0

    // Unaligned writes on O_DIRECT
    /// Changes submitted to the source and not complete, by piece slot.
    var running: [Int] = []
    var overlapWaiters: [Int] = []

    var inlineWrites = InlineWrites()

    // What the source has turned out not to do
    var canPunchHoles: Bool
    var canZeroRanges = true

    /// Copies' buffers: one a task, in pages.
    static let copyPagesPerTask =
        CopyBeforeWrite.clustersPerTask * ClusterGeometry.clusterBytes / BufferArena.pageBytes
    static let copyPages = copyPagesPerTask * CopyBeforeWrite.tasksMax

    init(_ export: LiveExport) {
        self.export = export
        descriptor = export.source.raw
        sizeBytes = export.source.sizeBytes
        alignment = export.source.alignment
        canPunchHoles = export.discards
        gate = CopyBeforeWrite(tokenLimit: Limits.piecesPerRing)
        jobs = [BackupExport?](repeating: nil, count: CopyBeforeWrite.jobsMax)
        detachLatches = [Latch?](repeating: nil, count: CopyBeforeWrite.jobsMax)
        heldPieces.reserveCapacity(Limits.requestsPerConnection)
        running.reserveCapacity(Limits.requestsPerConnection)
    }

    /// Arena offset of a copy's buffer.
    func copyBuffer(_ task: Int) -> Int {
        copyBuffers + task * Self.copyPagesPerTask * BufferArena.pageBytes
    }
}
