import Core
import Disk
import ServerInterface
import Simulation
import SystemLayer

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

/// A machine's disk, and what its guests may rely on.
final class ServedDisk {
    let number: Int
    unowned let world: ServerWorld
    let source: SimulatedSource
    let alignment: Int
    let id: DiskID
    /// Of the process that serves.
    private(set) var live: LiveExport
    /// What every sector got, in order.
    private(set) var log: [(index: Int, stamp: Stamp, version: UInt32)] = []
    /// Where guests have asked for a stamp.
    var asked: [Stamp: Range<Int>] = [:]
    /// Sectors that a stamp has reached.
    private(set) var reached: [Stamp: Set<Int>] = [:]
    /// Versions that were answered.
    var answered: [UInt32]
    /// An operation on it has gone wrong since the process began.
    var hasFailed = false
    var hangsForEver = false
    /// Its guest by shared memory, and where that one connects.
    let sharesMemory: Bool
    var machine: Machine?
    var listener: RingListener?
    /// Losses that the server's witness was told of.
    var toldCount = 0

    // Its tracking
    let stateFiles = FileTable()
    let memoryFiles = FileTable()
    var markText: String?
    var checkpoints: [ServedCheckpoint] = []
    /// What a backup tool has of it, last and by the checkpoints that were made with jobs.
    var lastCopy: [Stamp]?
    var copies: [String: [Stamp]] = [:]
    /// Checkpoints that are to be taken back.
    var takenBack: [String] = []
    /// That changes are not recorded is not yet said durably.
    var isDoubtDue = false

    static let firstFile: Int32 = 1_000_000

    init(_ number: Int, alignment: Int, _ world: ServerWorld) {
        self.number = number
        self.world = world
        self.alignment = alignment
        sharesMemory = world.swarm.sharesMemory[number]
        source = SimulatedSource(DiskShape(regions: 1, tailBytes: number % 2 == 0 ? 16384 : 4096))
        answered = source.versions
        id = DiskID(number: UInt64(number + 1))
        live = Self.export(number, alignment, source, world)
    }

    /// Another process serves it.
    func reopen() {
        let earlierLoss = source.reopen() ? Errno.io : nil
        // What was lost and told to nobody is not told to a process that comes later.
        answered = zip(answered, source.versions).map { min($0, $1) }
        toldCount = source.lostCount
        // The first sync will tell it again.
        hasFailed = earlierLoss != nil
        hangsForEver = false
        isDoubtDue = false
        live = Self.export(number, alignment, source, world, earlierLoss: earlierLoss)
    }

    private static func export(
        _ number: Int, _ alignment: Int, _ source: SimulatedSource, _ world: ServerWorld,
        earlierLoss: Int32? = nil
    ) -> LiveExport {
        let handle = WorldHandle(world)
        var facts = SourceFacts(
            path: "/disk\(number)", sizeBytes: source.shape.sizeBytes,
            raw: Self.firstFile + Int32(number),
            witness: WriteErrorWitness(raw: -1, earlier: earlierLoss) {
                handle.world.sourceError(number)
            })
        facts.alignment = alignment
        facts.type = .blockDevice
        facts.node = FileNode(device: UInt64(number + 1))
        return LiveExport(
            DiskConfiguration(
                exportName: "disk\(number)", path: facts.path, kind: .block, readOnly: false,
                cacheMode: alignment > 1 ? .none : .buffered, discardMode: .unmap),
            disk: DiskID(number: UInt64(number + 1)), source: RawSource(facts),
            homeRing: number % world.swarm.ringCount)
    }

    // MARK: Changes

    /// Some of a change reaches the disk.
    func write(_ stamps: ArraySlice<Stamp>, at first: Int, isLost: Bool) {
        for (offset, stamp) in stamps.enumerated() {
            checkIsAsked(stamp, first + offset)
            if asked[stamp]?.contains(first + offset) == true {
                reached[stamp, default: []].insert(first + offset)
            }
        }
        source.write(stamps, at: first, isLost: isLost)
        note(first..<first + stamps.count)
    }

    func punch(_ indices: Range<Int>) {
        let before = source.versions
        source.punch(indices)
        for index in indices {
            if source.versions[index] != before[index] { note(index..<index + 1) }
        }
    }

    private func note(_ indices: Range<Int>) {
        for index in indices { log.append((index, source.sectors[index], source.versions[index])) }
        let blocks = Set(indices.map { block(of: $0) })
        for place in checkpoints.indices { checkpoints[place].changed.formUnion(blocks) }
    }

    private func block(of index: Int) -> Int {
        Int(source.shape.byte(at: index) >> ServerWorld.granularityShift)
    }

    /// Blocks that an answer since a checkpoint must name: what was changed, and what differs.
    func needed(since checkpoint: ServedCheckpoint) -> [Int] {
        var blocks = checkpoint.changed
        for index in source.sectors.indices
        where source.sectors[index] != checkpoint.content[index] && source.shape.isInside(index) {
            blocks.insert(block(of: index))
        }
        return blocks.sorted()
    }

    /// Nothing is written that no guest has asked for: its own stamp where it asked, what is there
    /// already, or zeros.
    private func checkIsAsked(_ stamp: Stamp, _ index: Int) {
        guard stamp != 0, stamp != source.sectors[index] else { return }
        guard asked[stamp]?.contains(index) != true else { return }
        world.fail("disk \(number): sector \(index) gets \(stamp), which nobody has written there")
    }

    func writeBack(_ indices: [Int]) {
        let before = source.lostCount
        source.writeBack(indices)
        if source.lostCount != before { note(sectors(indices)) }
    }

    /// False when something was lost that this was not told of.
    func sync(by user: SimulatedSource.User = .guests) -> Bool {
        let before = source.lostCount
        let isKept = source.sync(by: user)
        if source.lostCount != before { note(0..<source.sectors.count) }
        return isKept
    }

    private func sectors(_ indices: [Int]) -> Range<Int> {
        (indices.min() ?? 0)..<(indices.max() ?? -1) + 1
    }

    /// Guests know now that something may be lost.
    func takeLoss() { answered = source.kept(answered) }

    /// The power goes.
    func losePower() {
        source.losePower(&world.draw)
        for index in source.sectors.indices {
            log.append((index, source.sectors[index], source.versions[index]))
        }
        // It was said in memory alone.
        if isDoubtDue { checkpoints = [] }
        isDoubtDue = false
        stateFiles.losePower(&world.draw)
        memoryFiles.forget()
        answered = zip(answered, source.floors).map { min($0, $1) }
    }
}
