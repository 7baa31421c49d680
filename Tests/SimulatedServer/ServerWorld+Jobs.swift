import Core
import NBDProtocol
import PointInTime
import ScratchFiles
import ServerInterface
import Simulation
import SystemLayer
import Tracking
import TrackingFiles

/// Jobs begin, go on in the next process, and end.
extension ServerWorld {
    func beginJob() {
        guard begin == nil, growth == nil, deletion == nil, jobs.filter({ !$0.isOver }).count < 3
        else { return }
        jobCount += 1
        let job = ServedJob(jobCount, self)
        for disk in disks where draw.chance(80) {
            do throws(SystemFault) {
                job.parts.append(try JobPart(job, disk, self))
            } catch {
                return fail("a job cannot be made: \(error)")
            }
        }
        guard !job.parts.isEmpty else { return }
        jobs.append(job)
        note("\(job.id) begins on disks \(job.parts.map(\.disk.number))")
        let chosen = job.parts.map(\.disk).filter { store($0) != nil }
        guard draw.chance(40), chosen.count == job.parts.count else {
            return start(job, checkpoint: nil, on: [])
        }
        checkpointCount += 1
        start(job, checkpoint: "c\(checkpointCount)", on: chosen)
    }

    /// Fixes an instant for a job, a checkpoint, or both.
    func start(_ job: ServedJob?, checkpoint: String?, on chosen: [ServedDisk]) {
        var instant = Instant()
        instant.exports = job?.parts.map(\.export) ?? []
        if let checkpoint {
            let made = CheckpointConfiguration(name: checkpoint, disks: chosen.map(\.id))
            if server.prepare(made, &instant) != nil {
                server.abandon(instant.swaps)
                if let job { drop(job) }
                return
            }
        }
        for part in job?.parts ?? [] {
            guard let base = part.base else { continue }
            guard let bits = try? store(part.disk)?.sealedUnion(since: base) else {
                server.abandon(instant.swaps)
                if let job { drop(job) }
                return
            }
            instant.sealedBits[part.disk.id] = [base: bits]
            guard !chosen.contains(where: { $0 === part.disk }) else { continue }
            instant.snapshots.append(
                RecordingSnapshot(disk: part.disk.id, homeRing: part.disk.live.homeRing))
        }
        begin = BeginUnderWay(
            call: DurableInstantCall(instant, checkpoint: checkpoint, server, now: now), job: job,
            checkpoint: checkpoint, disks: chosen)
    }

    func stepCalls() {
        stepBegin()
        stepGrowth()
        takeBack()
        if var call = deletion?.call, let (_, disk, name) = deletion {
            let outcome = call.step(now: now)
            deletion = (call, disk, name)
            if let outcome {
                deletion = nil
                if case .success(let isDeleted) = outcome {
                    if isDeleted { disk.checkpoints.removeAll { $0.name == name } }
                    disk.takenBack.removeAll { $0 == name }
                }
                checkTracking()
            }
        }
        var index = 0
        while index < endings.count {
            let job = endings[index].job
            var call = endings[index].call
            let outcome = call.step(now: now)
            endings[index] = (call, job)
            if outcome != nil {
                endings.remove(at: index)
                drop(job)
            } else {
                index += 1
            }
        }
    }

    // MARK: Growth

    /// The source of a disk has become longer, and an operator says so.
    func grow() {
        let idle = disks.filter { disk in
            !jobs.contains { !$0.isOver && $0.parts.contains { $0.disk === disk } }
        }
        guard begin == nil, deletion == nil, growth == nil, let disk = draw.pick(idle),
            disk.source.growTail(by: 4096)
        else { return }
        let size = disk.source.shape.sizeBytes
        note("disk \(disk.number) grows to \(size)")
        growth = (EnlargeCall(disk.id, disk.live, to: size, server, now: now), disk)
    }

    private func stepGrowth() {
        guard var call = growth?.call, let disk = growth?.disk else { return }
        let outcome = call.step(now: now)
        growth = (call, disk)
        guard let outcome else { return }
        growth = nil
        note("disk \(disk.number): \(outcome)")
        if case .failure = outcome { disk.source.takeTailBack(4096) }
        checkTracking()
    }

    private func stepBegin() {
        guard var under = begin else { return }
        let outcome = under.call.step(now: now)
        begin = under
        guard let outcome else { return }
        begin = nil
        switch outcome {
        case .failure(let fault):
            note("\(under.job?.id ?? "the checkpoint") is not begun: \(fault)")
            if let job = under.job { drop(job) }
        case .success:
            note("\(under.job?.id ?? "the checkpoint") has its instant")
            if let name = under.checkpoint {
                for disk in under.disks {
                    disk.checkpoints.append(
                        ServedCheckpoint(name: name, content: disk.source.sectors))
                }
            }
            under.job?.checkpoint = under.checkpoint
            if let job = under.job { publish(job) }
        }
        checkTracking()
    }

    /// The instant lies between the last disk's word and the first release: it is now, as no ring
    /// has had a turn since.
    private func publish(_ job: ServedJob) {
        for part in job.parts {
            part.instant = part.disk.source.sectors
            _ = job.scope.add(.backup(part.export))
            part.export.keepFigures()
            checkBitmap(of: part)
        }
        job.listener = listen(job.scope, isUnix: job.isUnix)
        job.isPublished = true
    }

    /// P3: the job's bitmap names everything that was changed since its base.
    private func checkBitmap(of part: JobPart) {
        guard let base = part.disk.checkpoints.first(where: { $0.name == part.base }),
            part.disk.source.lostCount == 0
        else { return }
        let bitmap = part.export.bitmaps[0].bitmap
        part.dirty = bitmap
        check(bitmap, since: base, of: part.disk, "a job's bitmap")
    }

    private func drop(_ job: ServedJob) {
        job.isOver = true
        job.scope.removeAll()
        for part in job.parts {
            part.scratch.empty()
            part.memory.remove()
        }
    }

    func endJob(_ job: ServedJob) {
        guard job.isRunning else { return }
        settle(job, isGood: firstReason(of: job) == nil && !job.isBroken)
        job.isEnding = true
        note("\(job.id) ends")
        job.scope.removeAll()
        if let listener = job.listener {
            shared.acceptor(for: .backups).post(
                .removeListener(number: listener.number, Replies().ticket()))
        }
        endings.append(
            (EndCall(job.parts.map(\.export), milliseconds: 3000, shared, now: now), job))
    }

    /// Storage is asked, as the watch of scratch does.
    func watch() { for job in jobs where job.isRunning { _ = firstReason(of: job) } }

    private func firstReason(of job: ServedJob) -> String? {
        RunningJob.firstReason(of: job.parts.map(\.export), shared)
    }

    // MARK: Breaks

    func take(_ event: ServerEvent) {
        if case .trackingLost(let id, let detail) = event {
            note("tracking is lost: \(detail)")
            for disk in disks where disk.id == id { disk.isDoubtDue = true }
        }
        guard case .jobBroken(let id, let reason) = event,
            let job = jobs.first(where: { $0.id == id })
        else { return }
        note("\(id) breaks: \(reason)")
        guard canary == nil else { return }
        let isAllowed =
            if reason.contains("is full") {
                job.parts.contains { $0.slots < 1000 }
            } else if reason.contains("was held for") {
                true
            } else if reason.contains("writes of the machine") {
                // A sync or a durable write that fails may be all that is ever said of a loss.
                job.parts.contains { $0.disk.source.lostCount > 0 || $0.disk.hasFailed }
            } else if reason.contains("old data") {
                job.parts.contains { $0.disk.hasFailed }
            } else {
                job.parts.contains { $0.hasFailed || $0.scratch.hasLost }
            }
        if !isAllowed { fail("P2: \(id) breaks for nothing: \(reason)") }
    }

    // MARK: The next process

    /// Every job that was served goes on, unless a doubt is left; others are given up.
    func resumeJobs() {
        for job in jobs where !job.isOver {
            let refusal = swarm.keepsJobs ? resume(job) : "jobs end with their process"
            guard let refusal else { continue }
            note("\(job.id) does not go on: \(refusal)")
            settle(job, isGood: false)
            for part in job.parts { shared.mailboxes[part.disk.live.homeRing].post(detach(part)) }
            drop(job)
        }
    }

    private func detach(_ part: JobPart) -> RingMessage {
        .detachJob(part.export, Replies().ticket())
    }

    /// Why it cannot go on; nil: it does.
    private func resume(_ job: ServedJob) -> String? {
        guard job.isPublished, !job.isEnding else { return "it was being begun or ended" }
        let wasWhole = !job.isBroken
        job.scope = ExportScope(jobID: job.id)
        for part in job.parts {
            if let doubt = doubt(part) { return doubt }
            if let refusal = resume(part, of: job) {
                if wasWhole, canary == nil {
                    fail("\(job.id) was whole and does not go on: \(refusal)")
                }
                return refusal
            }
        }
        job.listener = listen(job.scope, isUnix: job.isUnix)
        note("\(job.id) goes on")
        return nil
    }

    /// What the kernel tells whoever opens a file of which something was lost.
    private func doubt(_ part: JobPart) -> String? {
        if part.scratch.hasLost, canary != .resumesLost { return "its scratch has lost something" }
        if part.disk.source.lostCount != part.lostBefore { return "its disk has lost writes" }
        return nil
    }

    private func resume(_ part: JobPart, of job: ServedJob) -> String? {
        do throws(LedgerFileFault) {
            putBack(part)
            let found = try part.memory.leftLedger()
            let ledger = try Ledger(found, slotLimit: part.slots)
            let bitmap = part.base == nil ? nil : part.memory.leftBitmap(0)?.0
            if part.base != nil, bitmap == nil { return "its bitmap is gone" }
            let left = LeftExport(
                facts: found.facts, figures: found.figures, ledger: ledger, memory: part.memory,
                bitmaps: bitmap.map { [$0] } ?? [], granularityShift: Self.granularityShift)
            do throws(SystemFault) {
                try part.resume(job, left, self)
            } catch {
                throw .system(error)
            }
            if let bitmap { part.export.bitmaps.first?.freeze(bitmap) }
        } catch {
            return "\(error)"
        }
        _ = job.scope.add(.backup(part.export))
        let mailbox = shared.mailboxes[part.disk.live.homeRing]
        let replies = Replies()
        mailbox.post(.hold(part.disk.id, replies.ticket()))
        mailbox.post(.attachJob(part.export, replies.ticket()))
        mailbox.post(.resume(part.disk.id))
        return nil
    }

    /// Under a canary: the file is as it was some steps ago.
    private func putBack(_ part: JobPart) {
        guard canary == .entersLate, let past = part.pastLedgers.first else { return }
        memory.put(past, into: part.ledgerName)
    }
}

/// A call that fixes an instant.
struct BeginUnderWay {
    var call: DurableInstantCall
    let job: ServedJob?
    let checkpoint: String?
    let disks: [ServedDisk]
}
