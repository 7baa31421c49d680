import Core
import PointInTime
import ScratchFiles

/// A write of old content on its way to scratch.
struct ScratchWriteInFlight {
    let write: ScratchWrite
    let job: JobDisk
    let operation: Operation
}

/// Copies of old content, as a ring drives them.
extension SimulatedDisk {
    func startCopy(_ copy: CopyIndex, _ clusters: Range<Int>) {
        let start = ClusterGeometry.start(of: clusters.lowerBound)
        let first = source.shape.index(of: start)
        let count = clusters.count * DiskShape.clusterSectors
        var stamps = [Stamp](repeating: 0, count: count)
        world.note("disk \(number): copy \(copy.number) of clusters \(clusters)")
        world.submit(.source(number), parts: 2) { [self] part, _ in
            let half = part == 0 ? 0..<count / 2 : count / 2..<count
            for index in half {
                stamps[index] =
                    source.shape.isInside(first + index) ? source.sectors[first + index] : 0
            }
            return nil
        } end: { [self] errno in
            copyRead(copy, clusters, stamps, errno)
        }
    }

    private func copyRead(
        _ copy: CopyIndex, _ clusters: Range<Int>, _ stamps: [Stamp], _ errno: Int32?
    ) {
        buffers[copy.number] = stamps
        var zeros: UInt64 = 0
        if errno == nil {
            for position in 0..<clusters.count {
                let first = position * DiskShape.clusterSectors
                if stamps[first..<first + DiskShape.clusterSectors].allSatisfy({ $0 == 0 }) {
                    zeros |= 1 << UInt64(position)
                }
            }
        }
        if world.canary == .releasesBeforePublishing, errno == nil { writeHeld(clusters) }
        changes.sourceRead(copy, errno: errno, zeroClusters: zeros, now: world.now)
        perform()
    }

    /// A driver that takes old content in memory for content that is kept.
    private func writeHeld(_ clusters: Range<Int>) {
        for case let request? in requests where !request.isAtWork {
            guard let change = request.change else { continue }
            let own = ClusterGeometry.clusters(
                touching: change.bytes.lowerBound, length: UInt64(change.bytes.count))
            if clusters.contains(own.lowerBound), own.count == 1 { writeEarly(request) }
        }
    }

    func startScratchWrite(_ write: ScratchWrite) {
        guard let job = jobs[write.job.number] else {
            return world.fail("disk \(number): a write to scratch of a job that is gone")
        }
        let first = write.position * DiskShape.clusterSectors
        let count = write.count * DiskShape.clusterSectors
        let stamps = Array(buffers[write.copy.number][first..<first + count])
        if Int(write.slot) + write.count > Int(world.swarm.slotLimit) {
            world.fail("P6: disk \(number): a slot beyond the limit of scratch")
        }
        let isEarly = world.canary == .publishesBeforeCopy
        let operation = world.submit(
            .scratch(job: job.job.number, disk: number), parts: 2
        ) { part, isLost in
            let half = part == 0 ? 0..<count / 2 : count / 2..<count
            for index in half {
                let slot = Int(write.slot) + index / DiskShape.clusterSectors
                job.scratch.write(
                    stamps[index...index], slot: slot, from: index % DiskShape.clusterSectors)
            }
            if isLost { job.scratch.lose() }
            return nil
        } end: { [self] errno in
            if !isEarly { scratchWritten(write, job, errno) }
        }
        scratchWrites.append(ScratchWriteInFlight(write: write, job: job, operation: operation))
        if isEarly { scratchWritten(write, job, nil) }
    }

    private func scratchWritten(_ write: ScratchWrite, _ job: JobDisk, _ errno: Int32?) {
        guard let index = scratchWrites.firstIndex(where: { $0.write == write && $0.job === job })
        else { return }
        scratchWrites.remove(at: index)
        if errno != nil { job.hasFailed = true }
        changes.scratchWritten(write, errno: errno, now: world.now)
        perform()
    }

    func endCopy(_ copy: CopyIndex) {
        if scratchWrites.contains(where: { $0.write.copy == copy }) {
            world.fail("disk \(number): copy \(copy.number) is over while it is being saved")
        }
    }

    /// Nobody needs what the job's writes preserve any more, and its scratch may never answer.
    func giveUpWrites(_ index: JobIndex) {
        guard world.canary != .waitsForBrokenJobs else { return }
        let given = scratchWrites.filter { $0.write.job == index }
        scratchWrites.removeAll { $0.write.job == index }
        for entry in given {
            entry.operation.isForgotten = true
            changes.scratchWritten(entry.write, errno: 125, now: world.now)
        }
    }

    func jobBroke(_ index: JobIndex, _ cause: BreakCause) {
        guard let job = jobs[index.number] else {
            return world.fail("disk \(number): a job broke that is gone")
        }
        world.note("disk \(number): job \(job.job.number) breaks, \(cause)")
        if !job.ledger.view.isClosed {
            world.fail("P5: disk \(number): a job broke with its ledger open")
        }
        if job.isBroken { world.fail("disk \(number): a job broke twice") }
        checkCause(job, index, cause)
        job.isBroken = true
        job.isWhole = false
        giveUpWrites(index)
        job.scratch.empty()
        perform()
    }

    func jobDetached(_ index: JobIndex) {
        guard let job = jobs[index.number] else {
            return world.fail("disk \(number): a job was detached that is gone")
        }
        if scratchWrites.contains(where: { $0.job === job }) {
            world.fail("disk \(number): a job was detached with writes in flight")
        }
        jobs[index.number] = nil
        job.isWhole = false
        job.isDetached = true
        job.scratch.empty()
    }

    /// A job breaks for what its own scratch or its disk did, and for nothing else.
    private func checkCause(_ job: JobDisk, _ index: JobIndex, _ cause: BreakCause) {
        switch cause {
        case .sourceRead, .sourceLost:
            if !hasFailed { world.fail("P2: a job breaks for its disk, which is well") }
        case .scratchWrite, .scratchRead, .scratchLost:
            if !job.hasFailed, !job.scratch.hasLost {
                world.fail("P2: a job breaks for its scratch, which is well")
            }
        case .scratchFull:
            if world.swarm.slotLimit > 500 { world.fail("P2: a job breaks for room, and has it") }
        case .copyTimeout: checkHoldLimit(job)
        case .spaceForGuest: break
        }
    }

    /// A held write may only be waiting for the disk, for this job, or for a whole job whose own
    /// time is not over.
    private func checkHoldLimit(_ job: JobDisk) {
        let reads = world.operations.contains { $0.place == .source(number) }
        let isWaited = scratchWrites.contains { entry in
            entry.job === job || (entry.job.isWhole && !entry.job.job.isEnding)
        }
        if !reads, !isWaited {
            world.fail("P2: job \(job.job.number) breaks for another's scratch")
        }
    }

    func tickJobs() {
        for case let job? in jobs where job.isWhole && job.lostBefore != source.lostCount {
            hasFailed = true
            if let index = job.index {
                changes.breakJob(index, .sourceLost(errno: 5), now: world.now)
                perform()
            }
        }
        changes.expire(now: world.now)
        perform()
        checkWaits()
    }

    /// Whatever hangs: a write that waits for copies goes on when every job's limit is over.
    private func checkWaits() {
        guard !changes.isHeld, !changes.isLogAwaited, blockBytes == DiskShape.sectorBytes,
            lossDeadline == .max, !changes.isRecordBusy, let limit = world.swarm.holdLimits.max()
        else { return }
        for case let request? in requests
        where request.kind == .write && !request.isAtWork && request.change != nil {
            let since = max(request.startedAt, lastRelease)
            if world.now > since, world.now - since > limit + World.tick {
                world.fail("P2: disk \(number): write \(request.number) waits beyond every limit")
            }
        }
    }
}
