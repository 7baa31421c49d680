import Disk
import IORing
import NBDProtocol
import PointInTime
import ScratchFiles
import ServerInterface
import Simulation
import SystemLayer
import TLS
import Tracking

/// A job over some disks.
final class ServedJob {
    let number: Int
    var parts: [JobPart] = []
    var scope: ExportScope
    /// Where its clients connect.
    var listener: RingListener?
    let isUnix: Bool
    let copyTimeoutMilliseconds: UInt64
    let mayRelease: Bool
    /// The checkpoint that was made with it.
    var checkpoint: String?
    /// What becomes of it is known, and has been done.
    var isSettled = false
    var isPublished = false
    var isEnding = false
    var isOver = false

    init(_ number: Int, _ world: ServerWorld) {
        self.number = number
        scope = ExportScope(jobID: "job\(number)")
        isUnix = world.draw.chance(70)
        copyTimeoutMilliseconds = [500, 2000, 5000][world.draw.below(3)]
        mayRelease = world.swarm.releases && world.draw.chance(50)
    }

    var id: String { "job\(number)" }
    var isRunning: Bool { isPublished && !isEnding && !isOver }
    var isBroken: Bool { parts.contains { $0.export.brokenReason != nil } }
}

/// A write to scratch that its writer has to make.
struct ScratchWriteUnderWay {
    let ticket: ScratchTicket
    let bytes: LentBytes
    let position: UInt64
}

/// A job on one disk.
final class JobPart {
    let job: Int
    let disk: ServedDisk
    let slots: UInt32
    let scratch = SimulatedScratch()
    let place: Place
    let memory: JobMemory
    /// Of the process that serves.
    private(set) var export: BackupExport
    /// The disk at the instant.
    var instant: [Stamp] = []
    /// The checkpoint that it is incremental from, and the bitmap that it was begun with.
    let base: String?
    var dirty: DirtyBitmap?
    /// Losses of the disk before it.
    var lostBefore = 0
    /// Writes to scratch in their order; whether the first has begun, and whether the ring has
    /// given it up.
    var writes: [ScratchWriteUnderWay] = []
    var hasBegun = false
    var isRevoked = false
    var isHung = false
    /// A read of its scratch is never answered.
    var hangsForEver = false
    var hasFailed = false
    /// Witnesses that were told of a loss.
    var told: Set<Int32> = []
    /// Sectors that a client has let go of.
    var released: Set<Int> = []
    /// Earlier contents of its ledger's file, where a canary wants them.
    var pastLedgers: [[UInt8]] = []

    static let firstFile: Int32 = 2_000_000
    static let firstWitness: Int32 = 3_000_000

    var ledgerName: String { "job\(job).\(disk.number).ledger" }
    var file: FileHandle { Self.file(job, disk) }

    private static func file(_ job: Int, _ disk: ServedDisk) -> FileHandle {
        FileHandle(firstFile + Int32(job * 16 + disk.number))
    }

    init(_ job: ServedJob, _ disk: ServedDisk, _ world: ServerWorld) throws(SystemFault) {
        self.job = job.number
        self.disk = disk
        slots = world.draw.chance(20) ? UInt32(1 + world.draw.below(6)) : 1000
        place = .scratch(job: job.number, disk: disk.number)
        memory = JobMemory(directory: world.memory.path, jobID: job.id, disk: disk.number)
        lostBefore = disk.source.lostCount
        base = world.draw.chance(60) ? world.draw.pick(world.bases(of: disk)) : nil
        export = try Self.export(job, disk, slots, memory, base, nil, world)
    }

    /// The next process goes on with what was left.
    func resume(_ job: ServedJob, _ left: LeftExport, _ world: ServerWorld) throws(SystemFault) {
        writes = []
        hasBegun = false
        isRevoked = false
        hangsForEver = false
        hasFailed = false
        // What was lost before is told to whoever opens first, and to nobody else.
        let first = Self.firstWitness(job.number, disk.number)
        told = scratch.hasLost ? Set(first..<first + 8) : []
        export = try Self.export(job, disk, slots, memory, base, left, world)
    }

    private static func export(
        _ job: ServedJob, _ disk: ServedDisk, _ slots: UInt32, _ memory: JobMemory,
        _ base: String?, _ left: LeftExport?, _ world: ServerWorld
    ) throws(SystemFault) -> BackupExport {
        let first = firstWitness(job.number, disk.number)
        let handle = WorldHandle(world)
        let rings = world.shared.layout.rings(for: .backups)
        var facts = ScratchFacts(
            path: "/scratch\(job.number)", raw: file(job.number, disk).number, slotLimit: slots,
            readers: rings.indices.map { reader in
                WriteErrorWitness(raw: first + Int32(reader - rings.lowerBound)) { nil }
            },
            witness: WriteErrorWitness(raw: first + 7) {
                handle.world.writeError(FileHandle(first + 7))
            })
        facts.node = FileNode(device: UInt64(1000 + job.number))
        return try BackupExport(
            JobDiskConfiguration(
                disk: disk.id, target: "disk\(disk.number)", exportName: "disk\(disk.number)",
                scratch: ScratchConfiguration(kind: .file, path: facts.path, reuseExternal: false),
                incremental: base.map {
                    IncrementalConfiguration(checkpoint: $0, bitmap: "disk\(disk.number)")
                }),
            jobID: job.id, live: disk.live, scratch: ScratchStorage(facts),
            home: world.shared.mailboxes[disk.live.homeRing], reservedBytes: 0, allocatedBytes: 0,
            granularityShift: ServerWorld.granularityShift,
            copyTimeoutMilliseconds: job.copyTimeoutMilliseconds,
            mayRelease: job.mayRelease, memory: world.swarm.keepsJobs ? memory : nil, left: left)
    }

    private static func firstWitness(_ job: Int, _ disk: Int) -> Int32 {
        firstWitness + Int32((job * 16 + disk) * 8)
    }

    func has(witness: Int32) -> Bool {
        let first = Self.firstWitness(job, disk.number)
        return witness >= first && witness < first + 8
    }
}
