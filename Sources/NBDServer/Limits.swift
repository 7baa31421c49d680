import PointInTime

/// The bounds of everything a peer can make the server hold or do (promise P6).
package enum Limits {
    /// Requests of one connection that are begun and not yet answered.
    ///
    /// Deep queues of guests and nbdcopy (64) fit twice.
    package static let requestsPerConnection = 128
    /// Buffer memory of one connection's requests: sixteen bulk pieces in flight, in bytes.
    package static let bufferBytesPerConnection = 4 << 20
    /// Replies of one connection that the peer has not taken; more and its requests are no longer
    /// read, in bytes.
    package static let unsentBytesPerConnection = 2 << 20
    /// Bytes moved by one operation of a request: large enough for the wire, small enough to stay
    /// in the cache.
    package static let pieceBytes = 256 << 10
    /// Longest read that is answered from one buffer: what a reply that may not be cut (simple, DF)
    /// needs, in bytes.
    package static let contiguousReadBytes = 1 << 20
    /// Reads up to this size are answered together from one buffer when the page cache has them, in
    /// bytes.
    package static let inlineReadBytes = 32 << 10
    /// Old content up to this size is read on the ring's thread when the page cache has it, in
    /// bytes.
    package static let inlineCopyBytes = 64 << 10
    /// Received bytes of one connection that wait to be parsed: the longest option fits, in bytes.
    package static let inputBytes = 68 << 10
    /// Bytes received and not yet opened on a connection with TLS: four records, in bytes.
    package static let sealedInputBytes = 68 << 10
    /// Sealed replies of one connection with TLS that leave with one call: sixteen records, in
    /// bytes.
    package static let sealedOutputBytes = 260 << 10
    /// One buffer of small replies, in bytes.
    package static let replyBufferBytes = 64 << 10
    /// Shortest piece of a read that is sent by reference: below, a copy is cheaper, in bytes.
    package static let referenceReadBytes: UInt64 = 64 << 10
    /// Pipes of 1 MiB that carry pages by reference; when all are in use, bytes are copied.
    package static let pipesPerRing = 64
    /// Descriptors of a ring itself: the io_uring, its mailbox, its clock, and what threads wake it by.
    package static let descriptorsPerRing = 4
    /// Most of an upstream that one question about its allocation covers, in bytes.
    package static let upstreamStatusBytes: UInt64 = 1 << 30
    /// Requests of one connection handled before others get a turn.
    package static let requestsPerTurn = 64
    /// Requests past the page cache that are handed over together in the midst of a guest's turn.
    static let handOverBatch = 4
    /// Answers in a row without a call that a guest wants, after which a ring's guests poll.
    ///
    /// One that sleeps wants a call for each request, or for each batch.
    static let answersOfPoller = 64
    /// Folios that a ring has split in a turn, some 50 us each; what comes behind them waits.
    ///
    /// A write without a split takes as long, and leaves a dirty folio, which is not split.
    static let splitsPerTurn = 32
    /// A handshake must be over by then, in nanoseconds.
    package static let handshakeNanoseconds: UInt64 = 10_000_000_000
    /// Operations of one front-end's reads and writes; when all are in use its chains stay in their
    /// queues.
    package static let lanesPerGuest = 256
    /// Requests of one front-end that are begun and not yet answered.
    package static let requestsPerGuest = 512
    /// Messages of one front-end handled before others get a turn.
    package static let messagesPerTurn = 16
    /// Lines in the event log that one front-end can cause, besides the last.
    package static let reportsPerGuest = 8
    /// Most that one CACHE request brings into the page cache, in bytes.
    package static let prefetchBytes: UInt64 = 16 << 20
    /// Clusters that a backup client releases before others get a turn: 64 MiB of disk.
    package static let releasedClustersPerTurn = 4_096
    /// Extents of one block status reply: 1 MiB on the wire, as much as clients are known to take;
    /// 2 MiB with 64-bit lengths.
    package static let extentsPerReply = 131_072
    /// Allocation lookups made for one block status request before others get a turn.
    package static let lookupsPerTurn = 64
    /// Runs gathered for it from what is known already before others get a turn.
    package static let runsPerTurn = 512
    /// Most of a ledger that is walked for one run, in bytes of the disk: a range of 64 bits must
    /// not hold the ring.
    package static let ledgerBytesPerRun: UInt64 = 32 << 20
    /// Extents of a dirty bitmap gathered before others get a turn.
    package static let dirtyExtentsPerTurn = 16_384
    /// One step of a discard or zeroing request; between two steps a job may begin, in bytes.
    package static let zeroingStepBytes: UInt64 = 128 << 20
    /// The same while a job runs and old data must be copied first, in bytes.
    package static let zeroingStepBytesUnderJob: UInt64 = 1 << 20
    /// A program that serves a disk's image closes it in this time, or the disk's tracking is left
    /// as after a kill, in milliseconds.
    package static let adapterEndMilliseconds: Int32 = 12_000
    /// Guest writes in flight must finish in this time for a job's instant to be fixed; then the
    /// begin is refused, in milliseconds.
    package static let holdMilliseconds: Int32 = 2_000
    /// Attempts to tell a disk's home ring its new size, and the pause between two of them, in
    /// milliseconds: the write-intent log may be at work.
    package static let growthAttempts = 100
    package static let growthPauseMilliseconds: Int32 = 20
    /// How long a connection that is being closed may take to accept its last replies, in
    /// nanoseconds; less than what the control thread waits.
    package static let farewellNanoseconds: UInt64 = 10_000_000_000
    /// The same of a connection that is sent away for another server, in nanoseconds: machines wait
    /// meanwhile.
    package static let departureNanoseconds: UInt64 = 2_000_000_000
    /// How long a thread that has nothing to do waits for more, in milliseconds.
    package static let idleMilliseconds: Int32 = 10_000
    /// How long the end of a job waits for its scratch files to be deleted, in milliseconds.
    package static let removalMilliseconds: Int32 = 5_000
    /// Descriptors kept back for disks, jobs and the control socket.
    package static let reservedDescriptors = 256
    /// With fewer to spare no front-end of vhost-user can be served: the server's own take the first
    /// numbers, and a front-end with one queue has about ten.
    package static let guestDescriptorsMin = 64
    /// How long the end of a job or disk waits for requests in flight, in milliseconds.
    package static let drainMilliseconds: Int32 = 30_000
    /// Operations of all connections of a ring.
    package static let piecesPerRing = 4_096
    /// Of these, the ones that reads and writes may take: the others get theirs for certain.
    package static let dataPiecesPerRing = 2_944
    /// Operations above which no request is begun: flushes and prefetches find room below it.
    package static let begunPiecesPerRing = 3_456
    /// Zeroing and discarding requests at work on a ring; each has one operation at a time.
    package static let zeroingPerRing = 512
    /// The same on one disk: what a job's begin may have to wait for.
    package static let zeroingPerDisk = 16
    /// Bytes that one connection moves before others get a turn: a guest on the same ring waits no
    /// longer than it takes to send them.
    package static let bytesPerTurn: UInt64 = 512 << 10
    /// Requests of all connections of a ring.
    package static let requestsPerRing = 8_192
    /// Disks whose home is one ring.
    package static let disksPerRing = 4_096
    /// Operations of a ring in flight at once: pieces, copies of all disks, scratch writes, and a
    /// few for each connection.
    package static let operationsPerRing = 32_768
    /// Memory that one connection can make the server hold at most, in bytes.
    ///
    /// Input (68 KiB), buffers of requests (4 MiB), replies that were not charged to those (at most
    /// 64 whole and 192 one-page reply buffers, 4.75 MiB), one block status reply beyond the bound
    /// on unsent bytes (2 MiB with extended headers) and the extents it is made of (1 MiB, and 8
    /// KiB for those answered in advance), buffers of TLS (328 KiB), and what the tables hold.
    package static let connectionBytesMax = 13 << 20
    /// Address space for buffers of one ring, in bytes; memory is used only as far as buffers are.
    ///
    /// Every connection at its bound, so that none can take another's; the memory for copies, and a
    /// copy of each disk besides; as much again for what lies between the runs.
    package static func arenaBytes(connections: Int, copies: Int) -> Int {
        2 * (max(2 << 30, connections * connectionBytesMax) + copies + disksPerRing * copyBytesMax)
    }
    /// Bytes that one copy moves at most.
    private static let copyBytesMax = CopyBeforeWrite.clustersPerCopy * ClusterGeometry.clusterBytes
    /// One buffer for a small reply between data, in bytes.
    package static let smallReplyBufferBytes = 4 << 10
    /// Longest reply that goes into a small buffer, in bytes.
    package static let smallReplyBytes = 1 << 10
    /// Connections accepted before others get a turn.
    package static let acceptsPerTurn = 64
    /// A handshake this old makes way for a new connection when there is no room, in nanoseconds:
    /// on one machine it takes less than a millisecond.
    package static let unixEvictionAgeNanoseconds: UInt64 = 20_000_000
    /// The same over TCP, where four round trips around the world may be needed.
    package static let tcpEvictionAgeNanoseconds: UInt64 = 1_000_000_000
    /// A peer whose requests wait is looked after when it has been silent for so long, in
    /// nanoseconds: it may have hung up.
    package static let hangUpCheckNanoseconds: UInt64 = 1_000_000_000
    /// Period of the ring's clock, in milliseconds.
    package static let tickMilliseconds = 100
    /// Memory of buffers that were not used for so many ticks goes back to the machine: 10 s.
    package static let trimTicks = 100
    /// Automatic TCP ports of jobs, as the field uses them.
    package static let automaticPorts: ClosedRange<UInt16> = 10_809...10_872
    /// Jobs that one disk can have at once.
    package static let jobsPerDisk = CopyBeforeWrite.jobsMax
    /// Clock ticks between two looks whether a tracked disk has lost writes: 1 s.
    package static let lossTicks = 10
    /// Clock ticks between two looks for regions that can leave the write-intent log: 10 s.
    package static let intentClearingTicks = 100
    /// An operation on a file that takes longer has lost its kernel worker, as far as others are
    /// concerned, in nanoseconds.
    package static let hungNanoseconds: UInt64 = 500_000_000
    /// After so long a change has stalled its disk, of which a ring asks nothing then that it would
    /// wait for itself, in nanoseconds.
    static let stallNanoseconds: UInt64 = 2_000_000_000
    /// After so long a sync may be one that fails when its process has been killed; healthy disks
    /// take less, in nanoseconds.
    package static let hungSyncNanoseconds: UInt64 = 5_000_000_000
    /// A disk waits so long for scratch of a job that is to go on, in milliseconds: then the job
    /// fails.
    package static let resumeMilliseconds: Int32 = 5_000
    /// Scratch may be in use for so long by what a killed process had in flight, in nanoseconds.
    package static let resumeInUseNanoseconds: UInt64 = 3_000_000_000
    /// Any disk or scratch is tried again so long while somebody else holds it.
    package static let closedSourceNanoseconds: UInt64 = 300_000_000
    /// A file that was changed so much later than its server was last known to live was changed by
    /// somebody else, in nanoseconds.
    package static let resumeSlackNanoseconds: UInt64 = 2_000_000_000
    /// How often the scratch of running jobs is looked after, in milliseconds.
    package static let scratchWatchMilliseconds: Int32 = 100
    /// Of those looks, every tenth asks for room that only people want to know of.
    package static let scratchLooksPerFigure = 10
    /// How long somebody waits for the picture of a disk, in milliseconds.
    package static let pictureMilliseconds: Int32 = 2_000
    /// How long a guest's write to a full file system waits at most until jobs have given room
    /// back, in nanoseconds.
    package static let reclaimNanoseconds: UInt64 = 2_000_000_000
    /// How long writes wait, when the write-intent log is given up, until it is said durably that
    /// it is, in nanoseconds: storage that only fails takes less, storage that hangs may never say
    /// so.
    package static let lossNanoseconds: UInt64 = 2_000_000_000
    /// How often it is tried again to say so where it could not be said, in milliseconds.
    package static let doubtRetryMilliseconds: Int32 = 10_000
    /// How soon a thread that could not be had is asked for again, in milliseconds.
    package static let threadRetryMilliseconds: Int32 = 1_000
    /// How often a sync that was cut off is made again before it counts as failed.
    package static let interruptionsMax = 64
    /// How long the end of a disk waits for its tracking to be closed, in milliseconds.
    package static let trackingCloseMilliseconds: Int32 = 30_000
    /// The same while another disk's has not been closed in time, in milliseconds.
    package static let trackingStuckMilliseconds: Int32 = 500
    /// Share of a scratch's room at which control is told, in percent.
    package static let scratchWatermarkPercent: UInt64 = 75
}
