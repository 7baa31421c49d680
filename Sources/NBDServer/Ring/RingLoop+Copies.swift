import Core
import Disk
import IORing
import PointInTime
import ScratchFiles
import Synchronization
import SystemLayer
import Tables

/// A copy of old content on its way from the source to scratch.
struct CopyInFlight {
    /// Bytes of its clusters that have been read.
    var progress = 0
    /// Its buffer, once it has one.
    var buffer: CopyBufferIndex?
    /// When its read was handed to the kernel, in nanoseconds; 0 while it is not there.
    var handedOverAt: UInt64 = 0
}

/// A write of old content to scratch that its writer is to carry out.
struct PendingScratchWrite {
    let disk: DiskIndex
    let write: ScratchWrite
    let buffer: CopyBufferIndex
    /// Tells this write from others that had its number.
    let serial: UInt64
}

/// A write to scratch that was given up while it was being carried out.
struct OrphanWrite {
    let ticket: ScratchTicket
    let buffer: CopyBufferIndex
}

/// Carries out what copy-before-write asks for.
extension RingLoop where IO: ~Copyable {
    /// Performs every action that the disk's changes have asked for.
    mutating func perform(_ disk: DiskIndex) {
        // What an action brings about at once is performed after it, by the loop that is running.
        guard !disks[disk].isPerforming else { return }
        disks[disk].isPerforming = true
        defer { disks[disk].isPerforming = false }
        while let action = disks[disk].changes.nextAction(&zeroingPlaces) {
            switch action {
            case .submit(let change): submitChange(PieceIndex(change))
            case .zero(let request): resumeZeroing(RequestIndex(request))
            case .quiet: reportQuiet(disk)
            case .readSource(let copy, _): startCopy(disk, copy)
            case .writeScratch(let write): start(write, disk)
            case .copyDone(let copy): endCopy(disk, copy)
            case .jobBroken(let job, let cause):
                reportBroken(disk, job, cause)
                giveUpWrites(disk, job)
                emptyScratch(disk, job)
            case .jobDetached(let job): jobDetached(disk, job)
            case .writeLog(let generation): writeLog(disk, generation)
            case .syncBits: saveBits(disk)
            case .declareLoss: declareLoss(disk)
            }
        }
    }

    private mutating func reportBroken(_ disk: DiskIndex, _ job: JobIndex, _ cause: BreakCause) {
        guard let export = disks[disk].jobs[job] else { return }
        shared.noteBroken(export, cause)
    }

    /// Nobody reads a broken job: what it has kept makes room at once.
    private mutating func emptyScratch(_ disk: DiskIndex, _ job: JobIndex) {
        guard let export = disks[disk].jobs[job], export.scratch.isOurs else { return }
        _ = io.start(.emptyScratch(export))
    }

    // MARK: Reading old content

    /// Reads into the copy's buffer.
    mutating func readOldContent(_ disk: DiskIndex, _ copy: CopyIndex) {
        let clusters = disks[disk].clusters(of: copy)
        disks[disk].copies[copy].progress = 0
        if !readFromCache(disk, copy, clusters) { readForCopy(disk, copy, clusters) }
    }

    /// Arena offset of the copy's buffer.
    private mutating func copyBuffer(_ disk: DiskIndex, _ copy: CopyIndex) -> Int {
        copyBuffers[bufferIndex(disk, copy)].offset
    }

    private mutating func bufferIndex(_ disk: DiskIndex, _ copy: CopyIndex) -> CopyBufferIndex {
        guard let buffer = disks[disk].copies[copy].buffer else {
            preconditionFailure("a copy that reads or is saved has a buffer")
        }
        return buffer
    }

    /// Takes a little old content out of the page cache, if all of it is there.
    private mutating func readFromCache(
        _ disk: DiskIndex, _ copy: CopyIndex, _ clusters: Range<Int>
    ) -> Bool {
        let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
        guard disks[disk].alignment == 1, bytes <= Limits.inlineCopyBytes else { return false }
        let got = io.readNow(
            disks[disk].file, into: &arena, at: copyBuffer(disk, copy), count: bytes,
            filePosition: ClusterGeometry.start(of: clusters.lowerBound),
            mayWait: disks[disk].export.source.readsNeverWait)
        guard got == bytes else { return false }
        disks[disk].copies[copy].progress = bytes
        sourceRead(disk, copy, errno: nil)
        return true
    }

    private mutating func readForCopy(_ disk: DiskIndex, _ copy: CopyIndex, _ clusters: Range<Int>)
    {
        let progress = disks[disk].copies[copy].progress
        let alignment = disks[disk].alignment
        disks[disk].copies[copy].handedOverAt = now
        let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
        // With O_DIRECT whole blocks are asked for; the read ends where the file does.
        io.prepareRead(
            disks[disk].file, into: arena, at: copyBuffer(disk, copy) + progress,
            count: (bytes - progress + alignment - 1) / alignment * alignment,
            filePosition: ClusterGeometry.start(of: clusters.lowerBound) + UInt64(progress),
            tag: Operation.copyRead(disk, copy).tag)
    }

    mutating func copyReadCompleted(_ disk: DiskIndex, _ copy: CopyIndex, result: Int32) {
        let clusters = disks[disk].clusters(of: copy)
        disks[disk].copies[copy].handedOverAt = 0
        if result == -Errno.interrupted || result == -Errno.again {
            return readForCopy(disk, copy, clusters)
        }
        var errno: Int32?
        if result <= 0 {
            errno = result == 0 ? Errno.io : -result
        } else {
            let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
            disks[disk].copies[copy].progress = min(
                disks[disk].copies[copy].progress + Int(result), bytes)
            if disks[disk].copies[copy].progress < bytes {
                return readForCopy(disk, copy, clusters)
            }
        }
        sourceRead(disk, copy, errno: errno)
    }

    /// The copy's clusters are in its buffer, or could not be read.
    private mutating func sourceRead(_ disk: DiskIndex, _ copy: CopyIndex, errno: Int32?) {
        let clusters = disks[disk].clusters(of: copy)
        let zeros = errno == nil ? zeroClusters(disk, copy, clusters) : 0
        disks[disk].changes.sourceRead(copy, errno: errno, zeroClusters: zeros, now: now)
        afterCopy(disk)
    }

    /// Which of the copy's clusters are all zeros; a cluster cut short by the disk's end is filled
    /// up with zeros.
    private mutating func zeroClusters(_ disk: DiskIndex, _ copy: CopyIndex, _ clusters: Range<Int>)
        -> UInt64
    {
        let buffer = copyBuffer(disk, copy)
        let bytes = disks[disk].copies[copy].progress
        let whole = clusters.count * ClusterGeometry.clusterBytes
        if bytes < whole { arena.zero(buffer + bytes, count: whole - bytes) }
        var mask: UInt64 = 0
        for position in 0..<clusters.count {
            let start = buffer + position * ClusterGeometry.clusterBytes
            if arena.isZero(start, count: ClusterGeometry.clusterBytes) {
                mask |= 1 << UInt64(position)
            }
        }
        return mask
    }

    // MARK: Writing scratch

    private mutating func start(_ write: ScratchWrite, _ disk: DiskIndex) {
        guard let export = disks[disk].jobs[write.job] else {
            preconditionFailure("a job's writes end before it is detached")
        }
        let buffer = bufferIndex(disk, write.copy)
        lastScratchSerial += 1
        let ticket = ScratchTicket(
            number: scratchWrites.insert(
                PendingScratchWrite(
                    disk: disk, write: write, buffer: buffer, serial: lastScratchSerial)),
            serial: lastScratchSerial)
        let bytes = arena.lend(
            copyBuffers[buffer].offset + write.position * ClusterGeometry.clusterBytes,
            count: write.count * ClusterGeometry.clusterBytes)
        let isStarted = io.start(
            .writeScratch(
                export, ticket, bytes, position: UInt64(write.slot) << ClusterGeometry.shift))
        if !isStarted { mailbox.post(.scratchWritten(ticket, .failed(Errno.again))) }
    }

    /// A write to scratch is over.
    mutating func scratchWritten(_ ticket: ScratchTicket, _ outcome: ScratchOutcome) {
        guard scratchWrites.element(ticket.number)?.serial == ticket.serial else {
            return endOrphan(ticket)
        }
        let done = scratchWrites.remove(ticket.number)
        switch outcome {
        case .written:
            disks[done.disk].changes.scratchWritten(done.write, errno: nil, now: now)
        case .failed(let errno):
            disks[done.disk].changes.scratchWritten(done.write, errno: errno, now: now)
        case .keptForGuests:
            disks[done.disk].changes.breakJob(done.write.job, .spaceForGuest, now: now)
            disks[done.disk].changes.scratchWritten(
                done.write, errno: Errno.canceled, now: now)
        }
        afterCopy(done.disk)
    }

    /// Nobody needs what the job's writes preserve any more, and its scratch may never answer: they
    /// are over now.
    mutating func giveUpWrites(_ disk: DiskIndex, _ job: JobIndex) {
        guard let export = disks[disk].jobs[job] else { return }
        if let ticket = io.revokeWrites(to: export) {
            let buffer = scratchWrites[ticket.number].buffer
            keepForWriter(buffer)
            orphans.append(OrphanWrite(ticket: ticket, buffer: buffer))
        }
        for number in scratchWrites.indices(where: { $0.disk == disk && $0.write.job == job }) {
            let write = scratchWrites.remove(number).write
            disks[disk].changes.scratchWritten(write, errno: Errno.canceled, now: now)
        }
        cancelUnwantedCopies(disk)
    }

    /// A write that was given up is over at last: its buffer is free.
    private mutating func endOrphan(_ ticket: ScratchTicket) {
        guard let position = orphans.firstIndex(where: { $0.ticket == ticket }) else { return }
        letGo(ofCopyBuffer: orphans.remove(at: position).buffer)
    }

    mutating func afterCopy(_ disk: DiskIndex) {
        for job in JobIndex.all {
            if let export = disks[disk].jobs[job] { publishFigures(disk, job, export) }
        }
        perform(disk)
    }

    private mutating func publishFigures(_ disk: DiskIndex, _ job: JobIndex, _ export: BackupExport)
    {
        let figures = disks[disk].figures(of: job)
        export.ledger.note(preserved: figures.preserved, zero: figures.zero)
        let used = UInt64(disks[disk].slotsUsed(by: job)) << ClusterGeometry.shift
        export.scratchUsedBytes.store(used, ordering: .relaxed)
        if used > export.roomBytes / 100 * Limits.scratchWatermarkPercent {
            shared.noteWatermark(export)
        }
    }
}
