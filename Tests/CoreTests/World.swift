import Core
import PointInTime
import ScratchFiles
import Tracking

/// A job as the oracle knows it.
struct JobModel: Hashable {
    enum Phase: Hashable { case unborn, beginning, whole, broken, ending, gone }

    var phase = Phase.unborn
    /// The slot that the gate gave it.
    var slot: JobIndex?
    /// The disk's content at the job's instant.
    var instant: [UInt16] = []
    /// Content of its scratch, a value for each slot.
    var scratch: [UInt16] = []
    /// Clusters for which a copy to scratch was asked.
    var copied = Set<Int>()
    /// Clusters that its client has let go of.
    var released = Set<Int>()
    /// A write-back of its scratch has failed.
    var hasLost = false
    /// What was lost then is gone from the page cache, too.
    var isEvicted = false

    var isKnownToGate: Bool { phase == .whole || phase == .broken || phase == .ending }
}

/// A copy in flight.
struct CopyModel: Hashable {
    enum Phase: Hashable { case reading, taken, saving }

    let copy: CopyIndex
    let clusters: Range<Int>
    /// Jobs, by ordinal, that needed one of its clusters when it began.
    let jobs: [Int]
    var phase = Phase.reading
    var buffer: [UInt16] = []
}

/// A write to scratch in flight.
struct SaveModel: Hashable {
    let write: ScratchWrite
    /// The job's ordinal.
    let job: Int
    let values: [UInt16]
    var hasLanded = false
}

/// A guest write, or a step of a zeroing request; its name is its index.
struct WriteModel: Hashable {
    enum Phase: Hashable { case idle, waits, letGo }

    var phase = Phase.idle
    var left: Int
    /// What its disk was told when it came.
    var change = Change(ChangeID(0), bytes: 0..<1, blocks: 0..<1)
    var clusters = 0..<0
    var value: UInt16 = 0
    var waitingSince: UInt64 = 0
}

/// A zeroing request: the production's order of parts, a cluster a step.
struct ZeroModel: Hashable {
    enum Phase: Hashable { case idle, waiting, working, done }

    var phase = Phase.idle
    var left: Int
    var zeroing = Zeroing(0..<0, isDiscard: false, cut: .max)
}

/// What is recorded of the changes, and what of it would be there after a cut of the power.
struct RecordModel: Hashable {
    /// Every content that the log may have.
    var possibleLogs: Set<UInt64> = [0]
    var writing: UInt64?
    /// Bits in memory, those certainly durable, and those that the sync in flight covers.
    var bits: UInt64 = 0
    var durableBits: UInt64 = 0
    var syncing: UInt64?
    /// The kernel takes pages whose write-back failed for clean.
    var isSyncBelievable = true
    /// Clusters whose change was submitted: any of it may have reached the disk.
    var submitted: UInt64 = 0
    /// It is said in memory, for the next start after a kill, and it is to be said durably.
    var isLossAsked = false
    var isLossDeclared = false
    var nextMarkFails = false

    /// What is missed in the worst case after a cut of the power, or after the process is killed.
    var missed: UInt64 {
        if isLossDeclared { return 0 }
        // A killed process loses neither bits in memory nor marks; the bits alone must do then.
        if submitted & ~bits != 0, !isLossAsked { return submitted & ~bits }
        // The fewer bits have reached the file the worse: none but those that were synced.
        return possibleLogs.reduce(0) { $0 | submitted & ~(durableBits | $1) }
    }
}

/// A backup read.
struct ReaderModel: Hashable {
    enum Phase: Hashable {
        case idle
        /// Asks the production's read what to do.
        case ready
        /// With whether a write-back had failed before the read.
        case planned(PointInTimeRead.Step, hadLost: Bool)
        case taken([UInt16], hadLost: Bool)
        /// All is read, and the kernel is asked about scratch.
        case asks
    }

    var phase = Phase.idle
    var left: Int
    var job = -1
    var clusters = 0..<0
    var read = PointInTimeRead(0..<0)
    /// Where the step began that the read has been told of already.
    var early: UInt64?
    /// A write-back had failed before scratch was read first.
    var hadLost: Bool?
    var collected: [UInt16] = []
}

/// One disk, its gate, its jobs and everyone who uses it: a state of the walk.
struct World: Hashable {
    /// What nobody may ever read: scratch never written, or given back.
    static let garbage: UInt16 = .max

    var changes: DiskChanges
    /// Places for zeroing on the disk's ring.
    var ring: Places
    var source: [UInt16]
    var jobs: [JobModel]
    var copies: [CopyModel] = []
    var saves: [SaveModel] = []
    var writes: [WriteModel]
    var readers: [ReaderModel]
    var now: UInt64 = 0
    var failuresLeft: Int
    var releasesLeft: Int
    var ticksLeft: Int
    /// The job for which the disk is held, and whether it is quiet.
    var beginning: Int?
    var isQuiet = false
    var abandonedBeginsLeft: Int
    var zeroers: [ZeroModel]
    var record: RecordModel?
    var clearingsLeft: Int
    /// The ledgers' shared memory; kept by the walk, which puts it back before each branch.
    var words: [[UInt32]] = []

    init(_ scenario: Scenario) {
        let changeCount = scenario.writers + scenario.zeroers
        changes = DiskChanges(
            changeLimit: changeCount, hasBlocks: scenario.unaligned != nil,
            zeroingLimit: scenario.zeroingPlaces)
        ring = Places(limit: scenario.zeroingPlaces)
        source = scenario.content
        jobs = scenario.jobs.map { _ in JobModel() }
        writes = (0..<changeCount).map { index in
            WriteModel(left: index < scenario.writers ? scenario.writesPerWriter : 0)
        }
        zeroers = (0..<scenario.zeroers).map { _ in ZeroModel(left: scenario.zeroingsPerZeroer) }
        abandonedBeginsLeft = scenario.abandonedBegins
        clearingsLeft = scenario.clearings
        readers = (0..<scenario.readers).map { _ in ReaderModel(left: scenario.readsPerReader) }
        failuresLeft = scenario.failures
        releasesLeft = scenario.releases
        ticksLeft = scenario.ticks
        if scenario.isRecorded {
            record = RecordModel()
            changes.record(
                in: WriteIntent(regionCount: scenario.content.count, changeLimit: changeCount),
                regionShift: ClusterGeometry.shift)
        }
    }

    /// No guest write is in flight, so that a job can begin.
    var isDrained: Bool {
        writes.allSatisfy { $0.phase == .idle }
            && zeroers.allSatisfy { $0.phase == .idle || $0.phase == .done }
    }
}

/// The fixed surroundings of a walk: its scenario and one ledger for each job.
final class Stage {
    var scenario: Scenario
    let geometry: ClusterGeometry
    let ledgers: [Ledger]

    /// The last cluster is cut short: only its first 1000 bytes belong to the disk.
    init(_ scenario: Scenario) throws {
        self.scenario = scenario
        let geometry = ClusterGeometry(
            sizeBytes: ClusterGeometry.start(of: scenario.content.count - 1) + 1000)
        self.geometry = geometry
        ledgers = try scenario.jobs.map { _ in try Ledger(geometry: geometry) }
    }

    /// The world at the start, with the jobs begun that begin there.
    func start() throws(Violation) -> World {
        var world = World(scenario)
        for job in scenario.jobs.indices where scenario.jobs[job].beginsAtStart {
            try apply(.begin(job: job), to: &world)
        }
        return world
    }

    /// Clusters of the run that a job, whole as far as the oracle knows, has not preserved.
    func isNeeded(_ cluster: Int, by job: Int, in world: World) -> Bool {
        world.jobs[job].phase == .whole && !ledgers[job].view.isPreserved(cluster)
            && !ledgers[job].view.isClosed
    }
}
