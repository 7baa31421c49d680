import Bitmap
import IORing
import Scratch
import Synchronization

/// Jobs begin and end on a disk's home ring.
extension RingLoop {
    // MARK: Fixing an instant

    /// From now on changes wait; reports when none is in flight.
    mutating func hold(_ disk: DiskID, _ latch: Latch) {
        guard let slot = diskSlots[disk] else { return latch.arrive() }
        precondition(!disks[slot].isHeld, "one begin at a time")
        disks[slot].isHeld = true
        disks[slot].holdLatch = latch
        reportIfQuiet(slot)
    }

    mutating func reportIfQuiet(_ slot: DiskIndex) {
        guard disks[slot].changesInFlight == 0, let latch = disks[slot].holdLatch else { return }
        disks[slot].holdLatch = nil
        latch.arrive()
    }

    /// The instant is now: every cluster that changes from here on is preserved for the job first.
    mutating func attach(_ export: BackupExport, _ result: Outcome, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[export.disk] else { return }
        // A number is given again only when everything about its last job has been reported.
        perform(slot)
        precondition(disks[slot].isHeld && disks[slot].changesInFlight == 0)
        let job = disks[slot].gate.attach(
            export.ledger.view, slotLimit: export.scratch.slotLimit,
            holdLimitNanoseconds: export.holdLimitNanoseconds)
        guard let job else { return }
        disks[slot].jobs[job] = export
        result.succeeded.store(true, ordering: .releasing)
    }

    /// Lets the changes go that waited for a job to begin.
    mutating func release(_ disk: DiskID) {
        guard let slot = diskSlots[disk] else { return }
        disks[slot].isHeld = false
        disks[slot].holdLatch = nil
        let held = disks[slot].heldPieces
        disks[slot].heldPieces.removeAll(keepingCapacity: true)
        for piece in held { startChange(piece) }
        startHeldZeroing(slot)
        perform(slot)
    }

    // MARK: Disks come and go

    mutating func addDisk(_ export: LiveExport, _ seed: TrackingSeed?) {
        let slot = disks.insert(HomeDisk(export))
        diskSlots[export.disk] = slot
        guard let seed else { return }
        disks[slot].tracking = HomeTracking(
            recording: seed.recording,
            intent: WriteIntent(
                regionCount: seed.log.shape.regionCount, changeLimit: Limits.piecesPerRing,
                generation: IntentLogFile.firstGeneration),
            log: seed.log, doubt: seed.doubt, regionShift: seed.log.regionShift)
    }

    // MARK: Ending

    mutating func detach(_ export: BackupExport, _ latch: Latch) {
        guard let (slot, job) = find(export), disks[slot].detachLatches[job] == nil else {
            return latch.arrive()
        }
        disks[slot].detachLatches[job] = latch
        disks[slot].gate.detach(job: job, now: now)
        giveUpWrites(slot, job)
        perform(slot)
    }

    mutating func breakJob(_ export: BackupExport, _ cause: BreakCause) {
        guard let (slot, job) = find(export) else { return }
        disks[slot].gate.breakJob(job, cause: cause, now: now)
        perform(slot)
    }

    func find(_ export: BackupExport) -> (slot: DiskIndex, job: JobIndex)? {
        guard let slot = diskSlots[export.disk],
            let job = disks[slot].jobs.firstIndex(where: { $0 === export }).map(JobIndex.init)
        else { return nil }
        return (slot, job)
    }

    mutating func jobDetached(_ slot: DiskIndex, _ job: JobIndex) {
        disks[slot].jobs[job]?.writer.close()
        disks[slot].jobs[job] = nil
        disks[slot].detachLatches[job]?.arrive()
        disks[slot].detachLatches[job] = nil
    }

    /// Forgets a disk that nothing uses any more.
    mutating func removeDisk(_ disk: DiskID, _ outcome: Outcome, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk], isIdle(slot), outcome.take() else { return }
        disks.remove(slot)
        diskSlots[disk] = nil
        outcome.succeeded.store(true, ordering: .releasing)
    }

    private func isIdle(_ slot: DiskIndex) -> Bool {
        for number in connections.indices
        where connections.contains(number) && connections[number].disk == slot { return false }
        return disks[slot].changesInFlight == 0 && disks[slot].heldPieces.isEmpty
            && disks[slot].heldRequests.isEmpty
            && disks[slot].jobs.allSatisfy { $0 == nil }
    }
}
