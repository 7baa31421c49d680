import Disk
import IORing
import Scratch
import Synchronization

/// A write of old content to scratch that the kernel is carrying out.
struct PendingScratchWrite {
    let disk: Int
    let write: ScratchWrite
    /// Bytes written so far.
    var progress = 0
}

/// Carries out what copy-before-write asks for.
extension RingLoop {
    /// Performs every action that the disk's gate has asked for.
    mutating func perform(_ disk: Int) {
        // What an action brings about at once is performed after it, by the loop that is running.
        guard !disks[disk].isPerforming else { return }
        disks[disk].isPerforming = true
        defer { disks[disk].isPerforming = false }
        while let action = disks[disk].gate.nextAction() {
            switch action {
            case .readSource(let task, let clusters):
                disks[disk].copyProgress[task] = 0
                if !readFromCache(disk, task, clusters) { readForCopy(disk, task, clusters) }
            case .writeScratch(let write):
                start(PendingScratchWrite(disk: disk, write: write))
            case .release(let token): submitChange(token)
            case .jobBroken(let job, let cause): reportBroken(disk, job, cause)
            case .jobDetached(let job): jobDetached(disk, job)
            }
        }
    }

    private mutating func reportBroken(_ disk: Int, _ job: Int, _ cause: BreakCause) {
        guard let export = disks[disk].jobs[job] else { return }
        let text = export.text(for: cause)
        if export.noteBroken(text) { shared.emit(.jobBroken(id: export.jobID, reason: text)) }
    }

    // MARK: Reading old content

    /// Takes a little old content out of the page cache, if all of it is there.
    private mutating func readFromCache(_ disk: Int, _ task: Int, _ clusters: Range<Int>) -> Bool {
        let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
        guard disks[disk].alignment == 1, bytes <= Limits.inlineCopyBytes else { return false }
        let got = FileCalls.read(
            disks[disk].descriptor, into: arena, at: disks[disk].copyBuffer(task), count: bytes,
            filePosition: ClusterGeometry.start(of: clusters.lowerBound),
            mayWait: disks[disk].export.source.readsNeverWait)
        guard got == bytes else { return false }
        disks[disk].copyProgress[task] = bytes
        sourceRead(disk, task, errno: nil)
        return true
    }

    private mutating func readForCopy(_ disk: Int, _ task: Int, _ clusters: Range<Int>) {
        let progress = disks[disk].copyProgress[task]
        let alignment = disks[disk].alignment
        let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
        // With O_DIRECT whole blocks are asked for; the read ends where the file does.
        ring.prepareRead(
            disks[disk].descriptor, into: arena, at: disks[disk].copyBuffer(task) + progress,
            count: (bytes - progress + alignment - 1) / alignment * alignment,
            filePosition: ClusterGeometry.start(of: clusters.lowerBound) + UInt64(progress),
            tag: OperationTag(.copyRead, slot: disk, detail: task).raw)
    }

    mutating func copyReadCompleted(_ disk: Int, _ task: Int, result: Int32) {
        let clusters = disks[disk].gate.clusters(of: task)
        if result == -Errno.interrupted || result == -Errno.again {
            return readForCopy(disk, task, clusters)
        }
        var errno: Int32?
        if result <= 0 {
            errno = result == 0 ? Errno.io : -result
        } else {
            let bytes = ClusterGeometry(sizeBytes: disks[disk].sizeBytes).bytes(in: clusters)
            disks[disk].copyProgress[task] = min(
                disks[disk].copyProgress[task] + Int(result), bytes)
            if disks[disk].copyProgress[task] < bytes {
                return readForCopy(disk, task, clusters)
            }
        }
        sourceRead(disk, task, errno: errno)
    }

    /// The task's clusters are in its buffer, or could not be read.
    private mutating func sourceRead(_ disk: Int, _ task: Int, errno: Int32?) {
        let clusters = disks[disk].gate.clusters(of: task)
        let zeros = errno == nil ? zeroClusters(disk, task, clusters) : 0
        disks[disk].gate.readFinished(task: task, errno: errno, zeroClusters: zeros, now: now)
        afterCopy(disk)
    }

    /// Which of the task's clusters are all zeros; a cluster cut short by the disk's end is filled
    /// up with zeros.
    private mutating func zeroClusters(_ disk: Int, _ task: Int, _ clusters: Range<Int>) -> UInt64 {
        let buffer = disks[disk].copyBuffer(task)
        let bytes = disks[disk].copyProgress[task]
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

    /// Submits a write, or keeps it until one of another disk or job has finished: nothing else that
    /// the gate asks for waits behind it.
    private mutating func start(_ write: PendingScratchWrite) {
        if scratchWrites.isFull {
            deferredScratchWrites.append(write)
        } else {
            submitScratchWrite(scratchWrites.insert(write))
        }
    }

    private mutating func submitScratchWrite(_ number: Int) {
        let pending = scratchWrites[number]
        let write = pending.write
        guard let export = disks[pending.disk].jobs[write.job] else {
            preconditionFailure("a job's writes end before it is detached")
        }
        let start =
            disks[pending.disk].copyBuffer(write.task)
            + write.position * ClusterGeometry.clusterBytes
        ring.prepareWrite(
            export.scratch.raw, from: arena, at: start + pending.progress,
            count: write.count * ClusterGeometry.clusterBytes - pending.progress,
            filePosition: (UInt64(write.slot) << ClusterGeometry.shift)
                + UInt64(pending.progress),
            durable: false, tag: OperationTag(.scratchWrite, slot: number).raw)
    }

    mutating func scratchWriteCompleted(_ number: Int, result: Int32) {
        if result == -Errno.interrupted || result == -Errno.again {
            return submitScratchWrite(number)
        }
        if result > 0 {
            scratchWrites[number].progress += Int(result)
            let bytes = scratchWrites[number].write.count * ClusterGeometry.clusterBytes
            if scratchWrites[number].progress < bytes { return submitScratchWrite(number) }
        }
        let done = scratchWrites.remove(number)
        let errno: Int32? = result > 0 ? nil : result == 0 ? Errno.noSpace : -result
        disks[done.disk].gate.scratchWriteFinished(done.write, errno: errno, now: now)
        afterCopy(done.disk)
        if !deferredScratchWrites.isEmpty, !scratchWrites.isFull {
            start(deferredScratchWrites.removeFirst())
        }
    }

    mutating func afterCopy(_ disk: Int) {
        for job in disks[disk].jobs.indices {
            if let export = disks[disk].jobs[job] { publishFigures(disk, job, export) }
        }
        perform(disk)
    }

    private func publishFigures(_ disk: Int, _ job: Int, _ export: BackupExport) {
        let figures = disks[disk].gate.figures(job: job)
        export.ledger.note(preserved: figures.preserved, zero: figures.zero)
        let used = UInt64(disks[disk].gate.slotsUsed(job: job)) << ClusterGeometry.shift
        export.scratchUsedBytes.store(used, ordering: .relaxed)
        let room = export.scratch.roomBytes
        guard used > room / 100 * Limits.scratchWatermarkPercent,
            !export.watermarkSent.exchange(true, ordering: .relaxed)
        else { return }
        shared.emit(
            .scratchWatermark(
                id: export.jobID, target: export.target, usedBytes: used, limitBytes: room))
    }
}
