import Core
import Disk
import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Tables
import Tracking
import TrackingFiles

/// Jobs begin and end on a disk's home ring.
extension RingLoop where IO: ~Copyable {
    // MARK: Fixing an instant

    /// From now on changes wait; reports when none is in flight.
    mutating func hold(_ disk: DiskID, _ ticket: Ticket) {
        guard let slot = diskSlots[disk] else { return ticket.answer() }
        disks[slot].holdTicket = ticket
        disks[slot].changes.hold()
        perform(slot)
    }

    /// Nothing is in flight on a held disk.
    mutating func reportQuiet(_ slot: DiskIndex) { disks[slot].holdTicket?.answer() }

    /// The instant is now: every cluster that changes from here on is preserved for the job first;
    /// false: there is no place for a job.
    mutating func attach(_ export: BackupExport) -> Bool {
        guard let slot = diskSlots[export.disk] else { return false }
        // A number is given again only when everything about its last job has been reported.
        perform(slot)
        let job = disks[slot].changes.attach(
            export.ledger.view, slotLimit: export.scratch.slotLimit,
            copyTimeoutNanoseconds: export.copyTimeoutNanoseconds, found: export.ledger.found)
        guard let job else { return false }
        disks[slot].jobs[job] = export
        if export.ledger.found != nil { afterCopy(slot) }
        return true
    }

    /// Lets the changes go that waited for a job to begin.
    mutating func resume(_ disk: DiskID) {
        guard let slot = diskSlots[disk] else { return }
        disks[slot].holdTicket = nil
        disks[slot].changes.resume(now: now)
        perform(slot)
    }

    // MARK: Disks come and go

    mutating func addDisk(_ export: LiveExport, _ seed: TrackingSeed?) {
        let slot = disks.insert(HomeDisk(export))
        diskSlots[export.disk] = slot
        enter(slot)
        guard let seed else { return }
        disks[slot].changes.record(
            in: WriteIntent(
                regionCount: seed.log.shape.regionCount, changeLimit: Limits.piecesPerRing,
                generation: IntentLogFile.firstGeneration, isAllMarked: seed.log.isAllMarked),
            regionShift: seed.log.regionShift)
        // Disks that are attached together do not all sync in the same tick.
        disks[slot].tracking = HomeTracking(
            recording: seed.recording, log: seed.log, doubt: seed.doubt,
            ticks: slot.number % Limits.intentClearingTicks)
    }

    /// Says which files of a disk are changed, and how.
    private mutating func enter(_ slot: DiskIndex) {
        let source = disks[slot].export.source
        guard source.type == .regular, !source.isReadOnly, source.remote == nil else { return }
        io.enter(disks[slot].file, takesWrites: !source.isDirect)
        // A disk that ends within a block has its end written through the page cache.
        let tail = FileHandle(source.tailRaw)
        if tail != disks[slot].file { io.enter(tail, takesWrites: true) }
    }

    /// Takes a disk out of the ring's tables; nothing is at work on it.
    mutating func takeOut(_ slot: DiskIndex) {
        let gone = disks.remove(slot)
        io.leave(gone.file)
        io.leave(FileHandle(gone.export.source.tailRaw))
    }

    // MARK: Ending

    mutating func detach(_ export: BackupExport, _ ticket: Ticket) {
        guard let (slot, job) = find(export), disks[slot].detachTickets[job] == nil else {
            return ticket.answer()
        }
        disks[slot].detachTickets[job] = ticket
        disks[slot].changes.detach(job, now: now)
        giveUpWrites(slot, job)
        perform(slot)
    }

    mutating func breakJob(_ export: BackupExport, _ cause: BreakCause) {
        guard let (slot, job) = find(export) else { return }
        disks[slot].changes.breakJob(job, cause, now: now)
        perform(slot)
    }

    mutating func find(_ export: BackupExport) -> (slot: DiskIndex, job: JobIndex)? {
        guard let slot = diskSlots[export.disk],
            let job = disks[slot].jobs.firstIndex(where: { $0 === export }).map(JobIndex.init)
        else { return nil }
        return (slot, job)
    }

    mutating func jobDetached(_ slot: DiskIndex, _ job: JobIndex) {
        if let export = disks[slot].jobs[job] { _ = io.start(.closeScratch(export)) }
        disks[slot].jobs[job] = nil
        disks[slot].detachTickets[job]?.answer()
        disks[slot].detachTickets[job] = nil
    }

    /// Forgets a disk that nothing uses any more; false when something does, or nobody waits for
    /// it.
    mutating func removeDisk(_ disk: DiskID, _ claim: Claim) -> Bool {
        guard let slot = diskSlots[disk], isIdle(slot), claim.take() else { return false }
        takeOut(slot)
        diskSlots[disk] = nil
        return true
    }

    private mutating func isIdle(_ slot: DiskIndex) -> Bool {
        for number in connections.indices
        where connections.contains(number) && connections[number].transmission.disk == slot {
            return false
        }
        return disks[slot].changes.isIdle && disks[slot].jobs.allSatisfy { $0 == nil }
    }
}
