import Core
import PointInTime
import ScratchFiles
import Tracking

/// A backup job: its part on each of its disks, and what a user was told of it.
final class SimulatedJob {
    let number: Int
    var parts: [JobDisk] = []
    /// Its exports are served.
    var isPublished = false
    var isEnding = false

    init(_ number: Int) { self.number = number }

    var isDetached: Bool { parts.allSatisfy(\.isDetached) }

    /// The process is gone.
    func die() { for part in parts { part.die() } }
}

/// A job on one of its disks.
final class JobDisk {
    unowned let job: SimulatedJob
    let disk: SimulatedDisk
    private(set) var ledger: Ledger
    let scratch = SimulatedScratch()
    let holdLimit: UInt64
    /// Its index among the disk's jobs, while it has one.
    var index: JobIndex?
    /// The disk at the job's instant; empty before.
    var instant: [Stamp] = []
    /// Blocks that its bitmap names; nil: a full backup.
    var dirty: DirtyBitmap?
    var base: String?
    var isWhole = false
    var isBroken = false
    var isDetached = true
    /// Failed write-backs of its disk before it began.
    var lostBefore = 0
    /// An I/O of its scratch has gone wrong.
    var hasFailed = false
    /// Clusters that its client has let go of.
    var released: Set<Int> = []
    var readers: [Reader] = []
    /// Its ledger was closed when its process ended.
    private var wasClosed = false
    /// Earlier contents of its ledger's file, where a canary wants them.
    private var pastLedgers: [[UInt8]] = []

    init(_ job: SimulatedJob, _ disk: SimulatedDisk, _ ledger: Ledger, holdLimit: UInt64) {
        self.job = job
        self.disk = disk
        self.ledger = ledger
        self.holdLimit = holdLimit
        lostBefore = disk.source.lostCount
    }

    private var world: World { disk.world }

    /// Nobody reads, but who waits for storage that never answers.
    var isReadersDone: Bool { readers.allSatisfy(\.isStuck) }

    // MARK: On the home ring

    /// The job's instant is now; false: there is no place for it.
    func attach() -> Bool {
        disk.perform()
        index = disk.changes.attach(
            ledger.view, slotLimit: world.swarm.slotLimit, copyTimeoutNanoseconds: holdLimit)
        guard let index else { return false }
        disk.jobs[index.number] = self
        isWhole = true
        isDetached = false
        instant = disk.source.sectors
        return true
    }

    func detach() {
        guard let index, !isDetached, disk.jobs[index.number] === self else { return }
        isWhole = false
        disk.changes.detach(index, now: world.now)
        disk.giveUpWrites(index)
        disk.perform()
    }

    // MARK: The next process

    /// The process is gone.
    func die() {
        readers = []
        index = nil
        isDetached = true
        isWhole = false
        wasClosed = ledger.view.isClosed
    }

    /// Attaches what the last process has left, before a guest can write; returns why that cannot
    /// be.
    ///
    /// Right only where no doubt is left: `LeftJob` asks the kernel what is asked of the world
    /// here.
    func resume() -> String? {
        if scratch.hasLost { return "its scratch has lost what was written" }
        if lostBefore != disk.source.lostCount { return "its disk has lost writes" }
        if world.canary == .entersLate, let past = pastLedgers.first {
            world.memory.put(past, into: ledgerName)
        }
        do throws(LedgerFileFault) {
            let found = try LedgerFile.open(path: world.memory.path + "/" + ledgerName)
            ledger = try Ledger(found, slotLimit: world.swarm.slotLimit)
        } catch {
            if !wasClosed, world.canary == nil {
                world.fail("P2: job \(job.number) was whole and does not go on: \(error)")
            }
            return "\(error)"
        }
        return attachLeft() ? nil : "there is no place for it"
    }

    private func attachLeft() -> Bool {
        disk.changes.hold()
        disk.perform()
        index = disk.changes.attach(
            ledger.view, slotLimit: world.swarm.slotLimit, copyTimeoutNanoseconds: holdLimit,
            found: ledger.found)
        if let index {
            disk.jobs[index.number] = self
            isWhole = true
            isDetached = false
        }
        disk.changes.resume(now: world.now)
        disk.perform()
        return index != nil
    }

    var ledgerName: String { "job\(job.number).\(disk.number).ledger" }

    /// Under a canary: what its file holds now, and did some steps ago.
    func keepLedger() {
        guard let bytes = world.memory.content(of: ledgerName) else { return }
        pastLedgers.append(bytes)
        if pastLedgers.count > 8 { pastLedgers.removeFirst() }
    }

    private func breakNow(_ cause: BreakCause) {
        ledger.view.close()
        world.post(disk.ring) { [self] in
            guard let index, disk.jobs[index.number] === self else { return }
            disk.changes.breakJob(index, cause, now: world.now)
            disk.perform()
        }
    }

    // MARK: Clients

    /// A client reads somewhere; it neither begins nor ends at a cluster's edge.
    func startRead() {
        guard job.isPublished, !job.isEnding, readers.count < 3 else { return }
        let perRegion = DiskShape.hotClusters * DiskShape.clusterSectors
        let region = world.draw.chance(50) ? 0 : world.draw.below(disk.source.shape.regions)
        let first = world.draw.below(perRegion)
        let count = 1 + world.draw.below(5 * DiskShape.clusterSectors)
        let start = disk.source.shape.byte(at: region * perRegion + first)
        let end = min(
            start + UInt64(min(count, perRegion - first)) * 512, ledger.geometry.sizeBytes)
        guard start < end, instant.count >= disk.source.shape.indices(start..<end).upperBound else {
            return
        }
        readers.append(Reader(start..<end))
    }

    func moveReader() {
        guard let reader = world.draw.pick(readers) else { return }
        move(reader)
    }

    func move(_ reader: Reader) {
        guard !reader.isWaiting else { return }
        let view = ledger.view
        let from = reader.read.position
        let step = reader.read.next(view)
        switch step {
        case .source(let count):
            submit(reader, .source(disk.number), from, count) { [self] indices in
                indices.map { disk.source.shape.isInside($0) ? disk.source.sectors[$0] : 0 }
            }
        case .scratch(let position, let count):
            reader.hadLost = reader.hadLost || scratch.hasLost
            let place = Place.scratch(job: job.number, disk: disk.number)
            submit(reader, place, from, count) { [self] indices in
                scratch.read(at: position, count: indices.count * 512)
            }
        case .zeros(let count):
            got(reader, from, [Stamp](repeating: 0, count: (count + 511) / 512), count)
        case .askScratch:
            reader.read.asked()
            let isLost =
                world.canary == .trustsScratch
                ? false
                : world.canary == .asksScratchBeforeReading ? reader.hadLost : scratch.hasLost
            if isLost, !ledger.view.isClosed { breakNow(.scratchLost(errno: 28)) }
        case .done: finish(reader)
        case .closed:
            if isWhole, !job.isEnding, !scratch.hasLost, !hasFailed {
                world.fail("P5: a whole job's ledger is closed")
            }
            remove(reader)
        case .released:
            if released.isEmpty { world.fail("P5: a cluster is denied that nobody let go of") }
            remove(reader)
        }
    }

    private func submit(
        _ reader: Reader, _ place: Place, _ from: UInt64, _ count: Int,
        _ take: @escaping (Range<Int>) -> [Stamp]
    ) {
        reader.isWaiting = true
        var given = count
        if count > 512, world.draw.chance(world.swarm.shortRate) {
            given = (1 + world.draw.below(count / 512)) * 512
        }
        let bytes = from..<from + UInt64(given)
        var stamps: [Stamp] = []
        if world.canary == .checksBeforeRead { reader.read.got(given, ledger.view) }
        reader.operation = world.submit(place) { [disk] _, _ in
            stamps = take(disk.source.shape.indices(bytes))
            return nil
        } end: { [self] errno in
            reader.isWaiting = false
            if errno != nil {
                if case .scratch = place {
                    hasFailed = true
                    breakNow(.scratchRead(errno: 5))
                }
                return remove(reader)
            }
            got(reader, from, stamps, given)
        }
    }

    /// Bytes have been read: the read is told afterwards, and keeps what is the instant's.
    private func got(_ reader: Reader, _ from: UInt64, _ stamps: [Stamp], _ count: Int) {
        if world.canary != .checksBeforeRead || !reader.wasTold(from) {
            reader.read.got(count, ledger.view)
        }
        let kept = Int((reader.read.position - from + 511) / 512)
        reader.collected += stamps.prefix(kept)
    }

    private func finish(_ reader: Reader) {
        remove(reader)
        let indices = disk.source.shape.indices(reader.bytes)
        let expected = Array(instant[indices])
        // The job breaks as soon as that is noticed, before any verdict.
        guard lostBefore == disk.source.lostCount, reader.collected != expected else { return }
        let wrong = indices.first { offset in
            let place = offset - indices.lowerBound
            return place >= reader.collected.count
                || reader.collected[place] != expected[place]
        }
        let place = (wrong ?? indices.lowerBound) - indices.lowerBound
        let found = place < reader.collected.count ? "\(reader.collected[place])" : "nothing"
        world.fail(
            "P1: job \(job.number) of disk \(disk.number): sector \(wrong ?? -1) is read as \(found),"
                + " the instant has \(place < expected.count ? expected[place] : 0)")
    }

    private func remove(_ reader: Reader) { readers.removeAll { $0 === reader } }

    /// A client lets go of clusters.
    func release() {
        guard world.swarm.releases, job.isPublished, !job.isEnding else { return }
        let clusters = ledger.geometry.clusterCount
        let first = world.draw.below(min(DiskShape.hotClusters, clusters))
        let range = first..<min(first + 1 + world.draw.below(3), clusters)
        released.formUnion(range)
        world.post(disk.ring) { [self] in
            guard let index, disk.jobs[index.number] === self else { return }
            disk.changes.releaseClusters(range, of: index, now: world.now)
            disk.perform()
        }
    }
}

/// A read of a backup export under way.
final class Reader {
    let bytes: Range<UInt64>
    var read: PointInTimeRead
    var collected: [Stamp] = []
    var isWaiting = false
    var operation: Operation?
    /// It waits for storage that never answers; its connection is closed with its job.
    var isStuck: Bool { isWaiting && operation?.fate == .hangsForEver }
    /// A write-back had failed before scratch was read.
    var hadLost = false

    init(_ bytes: Range<UInt64>) {
        self.bytes = bytes
        read = PointInTimeRead(bytes)
    }

    /// Whether the read has been told of what begins there already.
    func wasTold(_ from: UInt64) -> Bool { read.position != from }
}
