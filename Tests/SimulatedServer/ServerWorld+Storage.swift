import IORing
import Simulation
import SystemLayer

/// Files as the kernel sees them: disks and scratch.
extension ServerWorld {
    func disk(_ file: FileHandle) -> ServedDisk? {
        let index = Int(file.number - ServedDisk.firstFile)
        return disks.indices.contains(index) ? disks[index] : nil
    }

    func part(_ file: FileHandle) -> JobPart? {
        for job in jobs {
            if let part = job.parts.first(where: { $0.file == file }) { return part }
        }
        return nil
    }

    private func place(_ file: FileHandle) -> Place? {
        disk(file).map { .source($0.number) } ?? part(file)?.place
    }

    /// Whose storage it is has gone wrong.
    func noteFault(at place: Place) {
        switch place {
        case .source(let number): disks[number].hasFailed = true
        case .scratch:
            for job in jobs {
                for part in job.parts where part.place == place { part.hasFailed = true }
            }
        default: break
        }
    }

    // MARK: Fate

    /// What goes wrong with an operation is decided when it is handed over.
    func decideFate(of operation: KernelOperation) {
        guard let file = operation.file, let place = place(file) else { return }
        if swarm.shortRate > 0, draw.chance(swarm.shortRate) {
            operation.limit = (1 + draw.below(8)) * 4096
        }
        if swarm.interruptRate > 0, draw.chance(swarm.interruptRate) {
            operation.errno = 4
            operation.partsLeft = 0
            return
        }
        guard let fault = faults.next(place, rate: swarm.faultRate, &draw) else { return }
        note("\(fault) at \(place)")
        switch fault {
        case .fails(let errno):
            operation.errno = errno
            operation.partsLeft = 0
        case .failsDone(let errno): operation.errno = errno
        case .hangs(let forEver):
            operation.isHung = true
            operation.hangsForEver = forEver
            if forEver { markHung(place) }
        case .losesLater:
            // What bypasses the cache is not lost after it was answered.
            guard disk(file)?.alignment == 1 else { return }
            operation.isLost = true
        case .delays:
            operation.patience = 40
            return
        }
        noteFault(at: place)
    }

    private func markHung(_ place: Place) {
        switch place {
        case .source(let number): disks[number].hangsForEver = true
        case .scratch:
            for part in jobs.flatMap(\.parts) where part.place == place { part.hangsForEver = true }
        default: break
        }
    }

    // MARK: Effect

    /// An operation goes on; true when it is complete.
    func advance(_ operation: KernelOperation, _ kernel: Kernel) -> Bool {
        switch operation.kind {
        case .read(let file, let position, let count):
            return read(operation, file, position, min(count, operation.limit))
        case .write(let file, let position, let bytes, let durable):
            let stamps = Sectors.stamps(self.bytes(bytes))
            if canary == .answersBeforeWriting, operation.errno == nil {
                return answerEarly(operation, file, position, stamps, kernel)
            }
            return write(operation, file, position, stamps, durable)
        case .allocate(let file, let position, let count):
            if operation.partsLeft > 0, operation.errno != 4, let disk = disk(file) {
                operation.partsLeft = 0
                disk.punch(disk.source.shape.indices(position..<position + count))
            }
            return operation.isHung ? false : end(operation, -(operation.errno ?? 0))
        case .sync(let file):
            if operation.isHung { return false }
            if operation.errno == nil, let disk = disk(file), !sync(disk) { operation.errno = 5 }
            return end(operation, -(operation.errno ?? 0))
        case .receive, .event: return advanceWait(operation, kernel)
        case .kick, .call: return advanceEvent(operation)
        case .cancel, .workers:
            kernel.carryOut(operation)
            return end(operation, 0)
        case .nothing: return end(operation, 0)
        }
    }

    private func end(_ operation: KernelOperation, _ result: Int32) -> Bool {
        operation.result = result
        return true
    }

    /// In two halves: others may write in between.
    private func read(
        _ operation: KernelOperation, _ file: FileHandle, _ position: UInt64, _ count: Int
    ) -> Bool {
        if operation.isHung { return false }
        if let errno = operation.errno { return end(operation, -errno) }
        let half = operation.partsLeft == 2 ? count / 1024 * 512 : count
        let done = operation.bytes.count
        if half > done {
            operation.bytes += content(file, position + UInt64(done), half - done)
            if let ranges = operation.guest, canary != .readsShort || half <= 4096 {
                fill(ranges, with: operation.bytes[done...], from: done)
            }
        }
        operation.partsLeft -= 1
        guard operation.partsLeft <= 0 else { return false }
        let result = Int32(operation.bytes.count)
        if canary == .readsShort, operation.bytes.count > 4096 {
            operation.bytes.removeLast(operation.bytes.count - 4096)
        }
        return end(operation, result)
    }

    private func write(
        _ operation: KernelOperation, _ file: FileHandle, _ position: UInt64, _ stamps: [Stamp],
        _ durable: Bool
    ) -> Bool {
        guard let disk = disk(file) else { return end(operation, -Errno.io) }
        let count = min(stamps.count, operation.limit / Sectors.bytes)
        let first = disk.source.shape.index(of: position)
        if operation.partsLeft > 0 {
            operation.partsLeft -= 1
            let half = operation.partsLeft == 1 ? 0..<count / 2 : count / 2..<count
            disk.write(stamps[half], at: first + half.lowerBound, isLost: operation.isLost)
            if operation.partsLeft == 0, durable, operation.errno == nil,
                canary != .answersBeforeSync
            {
                writeThrough(disk, first..<first + count, operation)
            }
            return false
        }
        if operation.isHung { return false }
        if let errno = operation.errno { return end(operation, -errno) }
        return end(operation, Int32(count * Sectors.bytes))
    }

    /// Only what was written is made durable; a loss of it is told.
    private func writeThrough(
        _ disk: ServedDisk, _ indices: Range<Int>, _ operation: KernelOperation
    ) {
        let lost = disk.source.lostCount
        disk.writeBack(Array(indices))
        guard disk.source.lostCount != lost else { return }
        disk.hasFailed = true
        if canary != .forgetsLostWrites { operation.errno = 5 }
    }

    private func answerEarly(
        _ operation: KernelOperation, _ file: FileHandle, _ position: UInt64, _ stamps: [Stamp],
        _ kernel: Kernel
    ) -> Bool {
        if operation.isHung { return false }
        if let disk = disk(file) { late.append((disk, position, stamps)) }
        return end(operation, Int32(stamps.count * Sectors.bytes))
    }

    /// Makes everything durable; false when something was lost that nobody was told of.
    private func sync(_ disk: ServedDisk) -> Bool {
        if canary == .syncsNothing { return true }
        let isKept = disk.sync()
        if !isKept { disk.hasFailed = true }
        return isKept || canary == .forgetsLostWrites
    }

    // MARK: Content

    func content(_ file: FileHandle, _ position: UInt64, _ count: Int) -> [UInt8] {
        if let disk = disk(file) {
            let end = min(position + UInt64(count), disk.source.shape.sizeBytes)
            guard position < end else { return [] }
            return Sectors.bytes(of: disk.source.sectors[disk.source.shape.indices(position..<end)])
        }
        guard let part = part(file) else { return [UInt8](repeating: 0xFF, count: count) }
        return Sectors.bytes(of: part.scratch.read(at: position, count: count))
    }

    // MARK: At once

    func readNow(
        _ file: FileHandle, _ position: UInt64, _ count: Int, mayWait: Bool
    ) -> [UInt8]? {
        guard mayWait || draw.chance(50) else { return nil }
        if let place = place(file), faults.conditions[place] != nil { return nil }
        let given = draw.chance(swarm.shortRate) ? min(count, 4096) : count
        return content(file, position, given)
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
        if canary == .findsHoles { return (false, end) }
        let indices = disk.source.shape.indices(position..<end)
        let known = disk.source.allocation(at: indices.lowerBound, end: indices.upperBound)
        let knownEnd =
            known.end >= indices.upperBound ? end : disk.source.shape.byte(at: known.end)
        return (known.isData, knownEnd)
    }

    // MARK: Pages by reference

    func takePages(of file: FileHandle, _ position: UInt64, _ count: Int) -> PageRun? {
        guard draw.chance(70), pages.count < 8,
            place(file).map({ faults.conditions[$0] == nil }) ?? false
        else { return nil }
        lastPages += 1
        pages[lastPages] = PagesUnderWay(file: file, position: position, left: count)
        return PageRun(lastPages)
    }

    /// What the pages hold now goes out.
    func sendPages(_ run: PageRun, _ count: Int, to socket: SocketHandle) -> Int {
        guard let found = pages[Int(run.number)] else {
            fail("pages are sent that nobody has")
            return -Int(Errno.io)
        }
        // A socket may have taken part of a sector.
        let lead = Int(found.position % UInt64(Sectors.bytes))
        let bytes = content(found.file, found.position - UInt64(lead), lead + count)
        let sent = send(Array(bytes.dropFirst(lead).prefix(count)), to: socket)
        guard sent > 0 else { return sent }
        pages[Int(run.number)]?.position += UInt64(sent)
        pages[Int(run.number)]?.left -= sent
        return sent
    }

    func endPages(_ run: PageRun) {
        if pages.removeValue(forKey: Int(run.number)) == nil { fail("pages are ended twice") }
    }

    // MARK: Witnesses

    /// Each is told of a loss once.
    func writeError(_ witness: FileHandle) -> Int32? {
        if canary == .trustsScratch { return nil }
        for job in jobs {
            for part in job.parts where part.has(witness: witness.number) && part.scratch.hasLost {
                return part.told.insert(witness.number).inserted ? 28 : nil
            }
        }
        return nil
    }

    /// The same for a disk's own.
    func sourceError(_ number: Int) -> Int32? {
        let disk = disks[number]
        guard disk.toldCount != disk.source.lostCount, canary != .forgetsLostWrites else {
            return nil
        }
        disk.toldCount = disk.source.lostCount
        return 5
    }
}

/// Pages of a file on their way to a socket.
struct PagesUnderWay {
    let file: FileHandle
    var position: UInt64
    var left: Int
}
