import Core
import Disk
import PointInTime
import ScratchFiles
import ServerInterface
import Simulation
import System

@testable import NBDServer

/// Finds the world from closures that the server keeps.
struct WorldHandle: Sendable {
    private let address: UInt

    init(_ world: ServerWorld) {
        // SAFETY: only turned back into the object, by `world`.
        address = unsafe UInt(bitPattern: Unmanaged.passUnretained(world).toOpaque())
    }

    var world: ServerWorld {
        guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else {
            preconditionFailure("an object is never at zero")
        }
        // SAFETY: the world outlives the server that it runs; all is on one thread.
        return unsafe Unmanaged<ServerWorld>.fromOpaque(pointer).takeUnretainedValue()
    }
}

/// A machine's disk, and what guests may rely on.
final class ServedDisk {
    let number: Int
    let source: SimulatedSource
    let live: LiveExport
    let id: DiskID
    /// Where each write's sectors were written, and their versions then.
    var written: [Stamp: [(index: Int, version: UInt32)]] = [:]
    /// Versions whose writes were answered.
    var answered: [UInt32]
    var hasFailed = false
    var isHeld = false

    static let firstFile: Int32 = 1_000_000

    init(_ number: Int, alignment: Int, homeRing: Int) {
        self.number = number
        source = SimulatedSource(DiskShape(regions: 1, tailBytes: 8192))
        answered = source.versions
        id = DiskID(number: UInt64(number + 1))
        var facts = SourceFacts(
            path: "/disk\(number)", sizeBytes: source.shape.sizeBytes,
            raw: Self.firstFile + Int32(number),
            witness: WriteErrorWitness(raw: -1, asking: { nil }))
        facts.alignment = alignment
        facts.type = .blockDevice
        live = LiveExport(
            DiskConfiguration(
                exportName: "disk\(number)", path: facts.path, kind: .block, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap),
            disk: id, source: RawSource(facts), homeRing: homeRing)
    }

    /// Some of a change has reached the disk.
    func write(_ stamps: ArraySlice<Stamp>, at first: Int, isLost: Bool) {
        source.write(stamps, at: first, isLost: isLost)
        for (offset, stamp) in stamps.enumerated() where stamp > 1 && stamp != .garbage {
            written[stamp, default: []].append(
                (first + offset, source.versions[first + offset]))
        }
    }
}

/// A job over some disks, and its scratch.
final class ServedJob {
    let number: Int
    var parts: [JobPart] = []
    let scope: ExportScope
    var isPublished = false
    var isEnding = false
    var isOver = false
    var hasFailed = false

    init(_ number: Int) {
        self.number = number
        scope = ExportScope(jobID: "job\(number)")
    }
}

/// A job on one disk.
final class JobPart {
    let disk: ServedDisk
    let export: BackupExport
    let scratch = SimulatedScratch()
    let place: Place
    var instant: [Stamp] = []
    /// Writes to scratch, in their order; whether the first has begun.
    var writes: [(ticket: ScratchTicket, stamps: [Stamp], position: UInt64)] = []
    var hasBegun = false
    var isRevoked = false
    var isHung = false
    var toldLoss: Set<Int32> = []

    static let firstFile: Int32 = 2_000_000
    static let firstWitness: Int32 = 3_000_000

    init(_ job: Int, _ disk: ServedDisk, _ world: ServerWorld, slots: UInt32) throws(SystemFault) {
        self.disk = disk
        place = .scratch(job: job, disk: disk.number)
        let raw = Self.firstFile + Int32(job * 16 + disk.number)
        let witness = Self.firstWitness + Int32((job * 16 + disk.number) * 8)
        let handle = WorldHandle(world)
        let facts = ScratchFacts(
            path: "/scratch\(job)", raw: raw, slotLimit: slots,
            readers: (0..<world.ringCount).map { reader in
                WriteErrorWitness(raw: witness + Int32(reader), asking: { nil })
            },
            witness: WriteErrorWitness(
                raw: witness + 7, asking: { handle.world.writeError(FileHandle(witness + 7)) }))
        export = try BackupExport(
            JobDiskConfiguration(
                disk: disk.id, target: "disk\(disk.number)", exportName: "disk\(disk.number)",
                scratch: ScratchConfiguration(kind: .file, path: facts.path, reuseExternal: false)),
            jobID: "job\(job)", live: disk.live, scratch: ScratchStorage(facts),
            home: world.shared.mailboxes[disk.live.homeRing], reservedBytes: 0, allocatedBytes: 0,
            granularityShift: 16, holdLimitMilliseconds: world.holdMilliseconds, mayRelease: false)
    }

    func has(witness: Int32) -> Bool {
        let first = Self.firstWitness + (export.scratch.raw - Self.firstFile) * 8
        return witness >= first && witness < first + 8
    }
}
