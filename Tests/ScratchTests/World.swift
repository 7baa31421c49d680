import Core
import IORing
import Scratch

/// A job as the oracle knows it.
struct JobModel: Hashable {
    enum Phase: Hashable { case unborn, whole, broken, ending, gone }

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

    let task: CopyIndex
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

/// A guest write; its name is its index.
struct WriteModel: Hashable {
    enum Phase: Hashable { case idle, held, letGo }

    var phase = Phase.idle
    var left: Int
    var clusters = 0..<0
    var value: UInt16 = 0
    var heldSince: UInt64 = 0
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

    var gate: CopyBeforeWrite
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
    /// The ledgers' shared memory; kept by the walk, which puts it back before each branch.
    var words: [[UInt32]] = []

    init(_ scenario: Scenario) {
        gate = CopyBeforeWrite(changeLimit: scenario.writers)
        source = scenario.content
        jobs = scenario.jobs.map { _ in JobModel() }
        writes = (0..<scenario.writers).map { _ in WriteModel(left: scenario.writesPerWriter) }
        readers = (0..<scenario.readers).map { _ in ReaderModel(left: scenario.readsPerReader) }
        failuresLeft = scenario.failures
        releasesLeft = scenario.releases
        ticksLeft = scenario.ticks
    }

    /// No guest write is in flight, so that a job can begin.
    var isDrained: Bool { writes.allSatisfy { $0.phase == .idle } }
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
