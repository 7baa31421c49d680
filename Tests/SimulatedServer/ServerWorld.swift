import BoundedCalls
import Core
import IORing
import NBDProtocol
import ServerInterface
import ScratchFiles
package import Simulation
import System

@testable import NBDServer

/// A ring's loop, kept where it can be given turns.
final class RingBox {
    var loop: RingLoop<SimulatedIO>

    init(index: Int, shared: ServerShared, kernel: Kernel) throws(SystemFault) {
        loop = try RingLoop(index: index, shared: shared, io: SimulatedIO(kernel: kernel))
        loop.begin()
    }
}

/// The production's rings, turn by turn, between simulated disks and peers that speak bytes.
package final class ServerWorld {
    let steps: StepList
    var draw: Draw
    var faults = Faults()
    var faultRate: Int
    var shortRate: Int
    let ringCount: Int
    let holdMilliseconds: UInt64
    let canary: ServerCanary?
    var now: UInt64 = 1_000_000_000
    let shared: ServerShared
    var kernels: [Kernel] = []
    var boxes: [RingBox] = []
    var disks: [ServedDisk] = []
    var jobs: [ServedJob] = []
    var jobCount = 0
    var sockets: [SimulatedSocket] = []
    var peers: [Peer] = []
    var work: [(work: RingWork, ring: Int)] = []
    var begin: (call: InstantCall, job: ServedJob)?
    var endings: [(call: EndCall, job: ServedJob)] = []
    let liveScope = ExportScope(jobID: nil)
    var lastStamp: Stamp = 1
    package private(set) var violation: Violation?
    package var trace: [String]?
    var currentStep = -1
    /// Rings whose period is over.
    var ticksDue: Set<Int> = []
    /// Faults have stopped, and everything is to end.
    var isFinishing = false
    /// Weights of what happens, in the order of `Happening`.
    let weights: [Int]

    package init(_ steps: StepList, canary: ServerCanary? = nil) throws {
        self.steps = steps
        self.canary = canary
        var draw = Draw(seed: steps.seed ^ 0x5EED_0003)
        ringCount = 1 + draw.below(2)
        faultRate = draw.chance(50) ? 0 : 1 + draw.below(20)
        shortRate = draw.chance(50) ? 0 : 20
        holdMilliseconds = [500, 2000][draw.below(2)]
        weights = Happening.allCases.map { $0.weight(&draw) }
        let alignment = draw.chance(30) ? 4096 : 1
        let diskCount = 1 + draw.below(2)
        self.draw = draw
        var configuration = ServerConfiguration(maxConnections: 40)
        configuration.rings = ringCount
        let layout = RingLayout(rings: ringCount, servesJobs: true)
        shared = try ServerShared(
            layout, configuration, security: SecurityStore(SecurityConfiguration()),
            isSimulated: true)
        for ring in 0..<layout.count {
            let kernel = Kernel(self, ring: ring)
            kernels.append(kernel)
            boxes.append(try RingBox(index: ring, shared: shared, kernel: kernel))
        }
        for number in 0..<diskCount {
            let disk = ServedDisk(number, alignment: alignment, homeRing: number % ringCount)
            disks.append(disk)
            _ = liveScope.add(.live(disk.live))
            shared.mailboxes[disk.live.homeRing].post(
                .addDisk(disk.live, nil, Replies().ticket()))
        }
    }

    var isGoing: Bool { violation == nil }

    func fail(_ text: @autoclosure () -> String) {
        guard violation == nil else { return }
        violation = Violation(text: text(), step: currentStep)
        note("VIOLATION: \(violation?.text ?? "")")
    }

    func note(_ text: @autoclosure () -> String) {
        guard trace != nil else { return }
        trace?.append("\(currentStep): " + text())
    }

    /// Lives the history.
    package func run() -> Violation? {
        for step in steps.taken where isGoing {
            currentStep = step
            draw = Draw(seed: steps.stepSeed(step))
            happen(Happening.allCases[draw.index(weights: weights)])
        }
        currentStep = -1
        draw = Draw(seed: steps.seed ^ 1)
        if isGoing { finish() }
        return violation
    }

    // MARK: Files

    func disk(_ file: FileHandle) -> ServedDisk? {
        let index = Int(file.number - ServedDisk.firstFile)
        return disks.indices.contains(index) ? disks[index] : nil
    }

    func part(_ file: FileHandle) -> JobPart? {
        for job in jobs {
            if let part = job.parts.first(where: { $0.export.scratch.raw == file.number }) {
                return part
            }
        }
        return nil
    }

    func place(_ file: FileHandle) -> Place? {
        disk(file).map { .source($0.number) } ?? part(file)?.place
    }

    private func content(_ file: FileHandle, _ position: UInt64, _ count: Int) -> [UInt8] {
        if let disk = disk(file) {
            let end = min(position + UInt64(count), disk.source.shape.sizeBytes)
            guard position < end else { return [] }
            return Sectors.bytes(of: disk.source.sectors[disk.source.shape.indices(position..<end)])
        }
        guard let part = part(file) else { return [UInt8](repeating: 0xFF, count: count) }
        return Sectors.bytes(of: part.scratch.read(at: position, count: count))
    }

    /// What goes wrong with an operation is decided when it is handed over.
    func decideFate(of operation: KernelOperation) {
        let file: FileHandle
        switch operation.kind {
        case .read(let found, _, _), .write(let found, _, _, _), .allocate(let found, _, _),
            .sync(let found):
            file = found
        default: return
        }
        guard let place = place(file) else { return }
        if shortRate > 0, draw.chance(shortRate) { operation.limit = 1 + draw.below(8) }
        let fault = faults.next(place, rate: faultRate, &draw)
        if let fault { note("\(fault) at \(place)") }
        if fault != nil { disk(file)?.hasFailed = true }
        if fault != nil, let job = jobs.first(where: { $0.parts.contains { $0.place == place } }) {
            job.hasFailed = true
        }
        switch fault {
        case nil: break
        case .fails(let errno):
            operation.errno = errno
            operation.partsLeft = 0
        case .failsDone(let errno): operation.errno = errno
        case .hangs: operation.isHung = true
        case .losesLater: operation.isLost = true
        case .delays: operation.patience = 40
        }
    }

    /// An operation goes on; true when it is complete.
    func advance(_ operation: KernelOperation, _ kernel: Kernel) -> Bool {
        switch operation.kind {
        case .read(let file, let position, let count):
            if operation.isHung { return false }
            if let errno = operation.errno { return end(operation, -errno) }
            operation.bytes = content(file, position, min(count, clipped(operation.limit)))
            return end(operation, Int32(operation.bytes.count))
        case .write(let file, let position, let stamps, let durable):
            return write(operation, file, position, stamps, durable)
        case .allocate(let file, let position, let count):
            if operation.partsLeft > 0, let disk = disk(file) {
                operation.partsLeft = 0
                disk.source.punch(disk.source.shape.indices(position..<position + count))
            }
            return operation.isHung ? false : end(operation, -(operation.errno ?? 0))
        case .sync(let file):
            if operation.isHung { return false }
            if operation.errno == nil, let disk = disk(file), !disk.source.sync(by: .guests) {
                disk.hasFailed = true
                operation.errno = 5
            }
            return end(operation, -(operation.errno ?? 0))
        case .receive, .event: return advanceWait(operation, kernel)
        case .cancel: return end(operation, 0)
        case .nothing: return end(operation, 0)
        }
    }

    /// Sectors of a limit, in bytes.
    private func clipped(_ limit: Int) -> Int { limit == .max ? .max : limit * 4096 }

    private func end(_ operation: KernelOperation, _ result: Int32) -> Bool {
        operation.result = result
        return true
    }

    private func write(
        _ operation: KernelOperation, _ file: FileHandle, _ position: UInt64, _ stamps: [Stamp],
        _ durable: Bool
    ) -> Bool {
        guard let disk = disk(file) else { return end(operation, -Errno.io) }
        let count = min(stamps.count, operation.limit == .max ? .max : operation.limit * 8)
        if operation.partsLeft > 0 {
            operation.partsLeft -= 1
            let half = operation.partsLeft == 1 ? 0..<count / 2 : count / 2..<count
            let first = disk.source.shape.index(of: position)
            disk.write(stamps[half], at: first + half.lowerBound, isLost: operation.isLost)
            if operation.partsLeft == 0, durable, canary != .answersBeforeSync {
                let lost = disk.source.lostCount
                disk.source.writeBack(Array(first..<first + count))
                if disk.source.lostCount != lost { operation.errno = 5 }
            }
            return false
        }
        if operation.isHung { return false }
        if let errno = operation.errno { return end(operation, -errno) }
        return end(operation, Int32(count * Sectors.bytes))
    }

    // MARK: At once

    func readNow(
        _ file: FileHandle, _ position: UInt64, _ count: Int, mayWait: Bool
    ) -> [UInt8]? {
        guard mayWait || draw.chance(50) else { return nil }
        if let place = place(file), faults.conditions[place] != nil { return nil }
        return content(file, position, count)
    }

    func writeNow(_ file: FileHandle, _ position: UInt64, _ stamps: [Stamp]) -> Int {
        guard draw.chance(50), let disk = disk(file),
            faults.conditions[.source(disk.number)] == nil
        else { return -Int(Errno.again) }
        disk.write(stamps[...], at: disk.source.shape.index(of: position), isLost: false)
        return stamps.count * Sectors.bytes
    }

    func allocation(
        _ file: FileHandle, _ position: UInt64, _ end: UInt64
    ) -> (isData: Bool, end: UInt64) {
        guard let disk = disk(file) else { return (true, end) }
        let indices = disk.source.shape.indices(position..<end)
        let known = disk.source.allocation(at: indices.lowerBound, end: indices.upperBound)
        if canary == .findsHoles { return (false, end) }
        let knownEnd =
            known.end >= indices.upperBound ? end : disk.source.shape.byte(at: known.end)
        return (known.isData, knownEnd)
    }

    func writeError(_ witness: FileHandle) -> Int32? {
        if canary == .trustsScratch { return nil }
        for job in jobs {
            for part in job.parts where part.has(witness: witness.number) && part.scratch.hasLost {
                return part.toldLoss.insert(witness.number).inserted ? 28 : nil
            }
        }
        return nil
    }

    // MARK: Others

    func takeMessages(_ ring: Int) -> [RingMessage] {
        shared.mailboxes[ring].take(atMost: 1 + draw.below(6))
    }

    func start(_ work: RingWork, _ ring: Int) -> Bool {
        if case .writeScratch(let export, let ticket, let bytes, let position) = work,
            let part = part(FileHandle(export.scratch.raw))
        {
            part.writes.append((ticket, Sectors.stamps(bytes.copy()), position))
            return true
        }
        self.work.append((work, ring))
        return true
    }

    func revokeWrites(to export: BackupExport) -> ScratchTicket? {
        guard let part = part(FileHandle(export.scratch.raw)) else { return nil }
        if part.hasBegun {
            part.writes.removeSubrange(1...)
            defer { part.isRevoked = true }
            return part.isRevoked ? nil : part.writes[0].ticket
        }
        part.writes = []
        return nil
    }
}
