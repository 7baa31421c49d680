import Core
import PointInTime
import ScratchFiles
import SystemLayer
import TrackingFiles

/// Calls: jobs, checkpoints, start and stop.
extension World {
    func postToControl(_ message: @escaping () -> Void) { control.messages.append(message) }

    // MARK: Jobs

    func beginJob() {
        guard stoppingSince == nil, jobs.count < swarm.jobsAtOnce else { return }
        let chosen = disks.filter { $0.isServed && !$0.isOwned && draw.chance(70) }
        guard !chosen.isEmpty else { return }
        let mayCheck = chosen.allSatisfy { $0.store != nil && !$0.isSaving }
        begin(on: chosen, withCheckpoint: draw.chance(40) && mayCheck)
    }

    /// Begins a job; on some disks an incremental one, where that is possible.
    func begin(on chosen: [SimulatedDisk], withCheckpoint: Bool) {
        for disk in chosen { disk.noticeLoss() }
        jobCount += 1
        let job = SimulatedJob(jobCount)
        for disk in chosen {
            guard let ledger = ledger(of: jobCount, disk) else { return }
            let limit = swarm.holdLimits[draw.below(swarm.holdLimits.count)]
            let part = JobDisk(job, disk, ledger, holdLimit: limit)
            if draw.chance(50) { part.base = draw.pick(disk.bases) }
            job.parts.append(part)
        }
        let checkpoint = withCheckpoint ? newCheckpoint() : nil
        note("job \(job.number) on \(chosen.map(\.number)), checkpoint \(checkpoint ?? "none")")
        jobs.append(job)
        start(InstantCall(self, job: job, checkpoint: checkpoint, disks: chosen))
    }

    /// A ledger with the file by which the next process goes on with it.
    private func ledger(of job: Int, _ disk: SimulatedDisk) -> Ledger? {
        guard swarm.keepsJobs else { return try? Ledger(geometry: disk.geometry) }
        do throws(SystemFault) {
            try memory.make()
            let file = try LedgerFile.create(
                path: "\(memory.path)/job\(job).\(disk.number).ledger",
                facts: LedgerFacts(
                    bootID: "boot \(boot)", jobID: "\(job)", target: "\(disk.number)",
                    sizeBytes: disk.sizeBytes, source: "source", scratch: "scratch"))
            return try Ledger(geometry: disk.geometry, file: file)
        } catch {
            fail("a ledger cannot be made: \(error)")
            return nil
        }
    }

    private func newCheckpoint() -> String {
        checkpointCount += 1
        return "c\(checkpointCount)"
    }

    private func start(_ call: InstantCall) {
        calls.append(call)
        call.start()
    }

    func makeCheckpoint() {
        guard stoppingSince == nil else { return }
        let chosen = disks.filter {
            $0.isServed && !$0.isOwned && !$0.isSaving && $0.store != nil && draw.chance(70)
        }
        guard !chosen.isEmpty else { return }
        makeCheckpoint(on: chosen)
    }

    func makeCheckpoint(on chosen: [SimulatedDisk]) {
        let name = newCheckpoint()
        note("checkpoint \(name) on \(chosen.map(\.number))")
        start(InstantCall(self, job: nil, checkpoint: name, disks: chosen))
    }

    func deleteCheckpoint() {
        let possible = disks.filter { $0.isServed && !$0.isOwned && !$0.isSaving }
        guard let disk = draw.pick(possible), let name = draw.pick(disk.bases) else { return }
        deleteCheckpoint(name, of: disk)
    }

    func deleteCheckpoint(_ name: String, of disk: SimulatedDisk) {
        guard let store = disk.store else { return }
        note("disk \(disk.number): delete \(name)")
        disk.isOwned = true
        let born = process
        let bits = Result { () throws(TrackingFault) in
            try store.bitsToAdd(deleting: name)
        }
        guard isAlive(born) else { return }
        switch bits {
        case .failure: disk.isOwned = false
        case .success(nil): delete(name, disk)
        case .success(let bits?):
            post(disk.ring) { [self] in
                disk.add(bits)
                postToControl { self.delete(name, disk) }
            }
        }
    }

    private func delete(_ name: String, _ disk: SimulatedDisk) {
        let born = process
        guard !disk.isSaving, var store = disk.store else {
            disk.isOwned = false
            return
        }
        let layer = store.recording.serial
        disk.savingLayers.insert(layer)
        let isDeleted = (try? store.delete(checkpoint: name)) != nil
        guard isAlive(born) else { return }
        disk.savingLayers.remove(layer)
        disk.isOwned = false
        if isDeleted, disk.keep(store) { disk.checkpoints.removeAll { $0.name == name } }
        disk.compressLater()
        disk.checkAnswers()
    }

    /// Ends a job: its readers get errors, and nothing more is copied for it.
    func end(_ job: SimulatedJob) {
        guard job.isPublished, !job.isEnding else { return }
        job.isEnding = true
        note("job \(job.number) ends")
        for part in job.parts { post(part.disk.ring) { part.detach() } }
    }

    /// Jobs that are over go.
    func dropJobs() {
        jobs.removeAll { job in
            (job.isEnding || !calls.contains { $0.job === job && !$0.isOver } && !job.isPublished)
                && job.isDetached && job.parts.allSatisfy { $0.isReadersDone }
        }
    }

    // MARK: Jobs outlive their process

    /// The process is gone: jobs that were served are left to the next one.
    func leaveJobs() {
        let left = leftJobs + jobs.filter { $0.isPublished && !$0.isEnding && swarm.keepsJobs }
        for job in leftJobs + jobs { job.die() }
        leftJobs = left
        jobs = []
    }

    /// A disk is served again: what it needs of the jobs that were left is attached first.
    func resumeJobs(on disk: SimulatedDisk) {
        for job in leftJobs {
            for part in job.parts where part.disk === disk && part.isDetached {
                guard let refusal = part.resume() else { continue }
                note("job \(job.number) does not go on: \(refusal)")
                giveUp(job)
                break
            }
            guard isGoing, leftJobs.contains(where: { $0 === job }),
                job.parts.allSatisfy({ !$0.isDetached })
            else { continue }
            note("job \(job.number) goes on")
            leftJobs.removeAll { $0 === job }
            jobs.append(job)
        }
    }

    /// A job that was left cannot go on, or nobody waits for it any more.
    func giveUp(_ job: SimulatedJob) {
        leftJobs.removeAll { $0 === job }
        job.isEnding = true
        for part in job.parts { part.detach() }
    }

    // MARK: Stop

    func beginStop() {
        guard stoppingSince == nil else { return }
        note("a clean stop begins")
        stoppingSince = now
    }

    /// A stop waits until guests are answered and jobs have ended; in the end it waits no longer.
    func goOnStopping() {
        dropJobs()
        guard let since = stoppingSince, !isClosing else { return }
        for job in jobs { end(job) }
        let isQuiet =
            jobs.isEmpty && calls.isEmpty
            && disks.allSatisfy { !$0.hasRequests && !$0.isOwned && $0.changes.isIdle }
        if isQuiet { return stop() }
        if now - since > Self.stopTimeout { kill() }
    }

    func stop() {
        let born = process
        isClosing = true
        var areAllClean = true
        for disk in disks where disk.isServed {
            disk.checkAnswers()
            disk.noticeLoss()
            guard disk.syncSource() else {
                areAllClean = false
                disk.seenLost = disk.source.lostCount
                _ = disk.doubt?.declare()
                guard isAlive(born) else { return }
                continue
            }
            disk.closeTracking()
            guard isAlive(born) else { return }
        }
        note("the server has stopped")
        leave()
        wasCleanStop = areAllClean
    }

    // MARK: Death

    func kill() {
        guard !isDown else { return }
        note("kill")
        leave()
        wasCleanStop = false
    }

    private func leave() {
        for disk in disks { disk.noteEnd() }
        endProcess()
    }

    func performBetweenProcesses(_ kind: EventKind) {
        switch kind {
        case .start: if isDown { start() } else { retryStart() }
        case .cutPower:
            kill()
            note("the power is cut")
            nextBoot()
            leftJobs = []
            memory.clear()
            wasCleanStop = false
            for disk in disks { disk.losePower() }
        case .changeMeanwhile: changeMeanwhile()
        case .growMeanwhile:
            guard isDown, let disk = draw.pick(disks), disk.source.shape.regions < 4 else { return }
            note("disk \(disk.number) grows")
            disk.grow()
        case .removeFile: removeFile()
        default: break
        }
    }

    /// The server starts.
    func start() {
        note("start")
        isDown = false
        let born = process
        wasCleanStop = false
        for disk in disks where !disk.isServed && !disk.isOwned {
            disk.start()
            guard isAlive(born) else { return }
        }
    }

    /// Disks that could not be served are tried again.
    private func retryStart() {
        let born = process
        for disk in disks where !disk.isServed && !disk.isOwned && stoppingSince == nil {
            disk.start()
            guard isAlive(born) else { return }
        }
    }

    private func changeMeanwhile() {
        guard isDown, let disk = draw.pick(disks) else { return }
        if draw.chance(50) {
            note("disk \(disk.number): its state directory is mounted anew")
            disk.files.remount()
        } else if wasCleanStop, swarm.isFile {
            note("disk \(disk.number) is written by another program")
            lastStamp += 1
            let first = draw.below(disk.source.shape.sectorCount)
            if disk.source.shape.isInside(first) {
                disk.source.write(lastStamp, at: first..<first + 1)
            }
            disk.spoilExactness()
        }
    }

    /// Somebody removes a file of the state directory, or memory is tidied.
    private func removeFile() {
        guard isDown, let disk = draw.pick(disks), !disk.isOnlyInMemory else { return }
        let table = draw.chance(70) ? disk.files : disk.memory
        guard let name = draw.pick(table.sortedNames) else { return }
        note("disk \(disk.number): '\(name)' is removed")
        table.remove(name)
        table.syncNames()
        disk.spoilExactness()
    }
}
