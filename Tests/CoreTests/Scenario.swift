/// When a backup read looks whether its bytes were overtaken.
enum ReaderRule: Hashable {
    /// The product's rule: after the read of the source.
    case looksAfterReading
    /// Wrong: before it. A harness that lets this pass proves nothing.
    case looksBeforeReading
    /// Wrong: never asks whether the ledger is closed.
    case ignoresClosing
    /// Wrong: takes what it reads from scratch for good.
    case trustsScratch
    /// Wrong: does not ask, after a read of scratch, whether a write-back has failed.
    case trustsDevice
    /// Wrong: asks before the read.
    case asksDeviceTooEarly
}

/// What the driver of a disk's changes does wrong.
///
/// A harness that lets this pass proves nothing.
enum DriverRule: Hashable {
    case right
    /// Marks blocks when a write is complete, not before it is submitted.
    case marksLate
    /// Lets writes go before it is said that they are not recorded.
    case declaresLate
    /// Submits a write that could not be marked, and says so after.
    case submitsUnsaid
    /// Says that bits are durable without a sync.
    case skipsSync
    /// Tells nobody that steps of a zeroing request are part of it.
    case hidesSteps
    /// Says that no write is widened to blocks.
    case hidesBlocks
    /// Forgets to say that a write is complete.
    case forgetsFinished
}

/// How a job of a scenario begins and what it is allowed.
struct JobPlan {
    /// Begun before anything else, or at any moment at which no guest write is in flight.
    var beginsAtStart = true
    var slotLimit: UInt32 = 1000
    var copyTimeoutNanoseconds: UInt64 = .max
}

/// What may go wrong or happen besides writes and reads.
struct Trouble: OptionSet, Hashable {
    let rawValue: Int
    static let sourceReadFails = Trouble(rawValue: 1)
    static let scratchWriteFails = Trouble(rawValue: 2)
    static let scratchReadFails = Trouble(rawValue: 4)
    static let jobsEnd = Trouble(rawValue: 8)
    static let holesAreNoted = Trouble(rawValue: 16)
    /// What was written to scratch cannot be brought to its device later.
    static let scratchIsLost = Trouble(rawValue: 32)
    /// A write of the write-intent log fails, or hangs until it is given up.
    static let logFails = Trouble(rawValue: 64)
    static let syncFails = Trouble(rawValue: 128)
    /// The blocks of a write cannot be marked.
    static let markFails = Trouble(rawValue: 256)
}

/// The sizes, budgets and switched-on events of one walk.
struct Scenario {
    /// Content at the start, a value for each cluster; 0 is all zeros.
    var content: [UInt16] = [1, 2, 3]
    var writers = 2
    var writesPerWriter = 1
    /// Values that writes carry besides their own; 0 makes clusters zero again.
    var writesZeros = false
    var writeRanges: [Range<Int>] = [0..<1, 1..<2, 2..<3, 0..<2, 1..<3]
    var readers = 1
    var readsPerReader = 1
    var readRanges: [Range<Int>] = [0..<1, 1..<2, 2..<3, 0..<2, 1..<3, 0..<3]
    var readerRule = ReaderRule.looksAfterReading
    var jobs = [JobPlan()]
    var trouble: Trouble = []
    /// How many things may go wrong in one walk.
    var failures = 1
    /// How often a client may let go of clusters, and of which.
    var releases = 0
    var releaseRanges: [Range<Int>] = [0..<1, 1..<2, 2..<3, 0..<2, 0..<3]
    /// How often time may pass the jobs' hold limit.
    var ticks = 0
    /// Jobs begin at any moment: the disk is held, and when it is quiet the job is attached, or the
    /// begin is given up, so often.
    var holds = false
    var abandonedBegins = 0
    /// Writers whose writes do not fill whole blocks; a block is a cluster here.
    ///
    /// Nil: there are no blocks.
    var unaligned: Set<Int>?
    /// Whether changes are recorded, a region for each cluster, and how often idle ones leave the
    /// log.
    var isRecorded = false
    var clearings = 0
    /// Requests that zero clusters, one at a time and one after the other, and how many may be at
    /// work.
    var zeroers = 0
    var zeroingsPerZeroer = 1
    var zeroRanges: [Range<Int>] = [0..<2]
    var zeroingPlaces = 8
    /// What the driver does wrong.
    var driverRule = DriverRule.right
}

/// A promise that was not kept, and the events that led there.
struct Violation: Error, CustomStringConvertible {
    let text: String
    var events: [Event] = []

    var description: String {
        "\(text), after \(events.map { "\($0)" }.joined(separator: "; "))"
    }
}

/// Something that happens to the disk: every order of these is possible.
enum Event: Hashable {
    case submit(token: Int, clusters: Range<Int>, value: UInt16)
    /// A write that was let go arrives in the source.
    case reach(token: Int)
    /// The value that a copy's read of the source returns is fixed now.
    case take(copy: Int)
    case readDone(copy: Int)
    case readFails(copy: Int)
    /// A write to scratch arrives in it.
    case land(save: Int)
    case saveDone(save: Int)
    case saveFails(save: Int)
    case begin(job: Int)
    /// The three steps of a begin beside guests, and the two of one that takes too long.
    case hold(job: Int)
    case attach(job: Int)
    case letGuestsGo
    case startZeroing(zeroer: Int, clusters: Range<Int>)
    case logIsWritten(Bool)
    case bitsAreSynced(Bool)
    case startClearing
    case logIsOverdue
    case lossIsDeclared
    /// The next blocks cannot be marked.
    case nextMarkFails
    case end(job: Int)
    case scratchReadFails(job: Int)
    /// A write-back of the job's scratch fails: the kernel knows, and nobody else yet.
    case writeBackFails(job: Int)
    /// What was not brought to the device leaves the page cache: other content is read from now on.
    case scratchIsEvicted(job: Int)
    case clientReleases(job: Int, clusters: Range<Int>)
    case timePasses
    case noteHole(cluster: Int)
    case readerBegins(reader: Int, job: Int, clusters: Range<Int>)
    case readerMoves(reader: Int)
}
