import Bitmap
import Disk
import IORing
import Synchronization

/// A disk becomes larger on its home ring.
extension RingLoop {
    /// While the disk is held: it ends later from now on, and the new part is dirty.
    ///
    /// Refused, to be tried again, while a job or the write-intent log is at work.
    mutating func grow(
        _ disk: DiskID, _ growth: DiskGrowth, _ outcome: Outcome, _ latch: Latch
    ) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk], disks[slot].isHeld, disks[slot].changesInFlight == 0,
            disks[slot].jobs.allSatisfy({ $0 == nil }),
            !(disks[slot].tracking?.intent.isBusy ?? false), growTracking(slot, growth)
        else { return }
        disks[slot].sizeBytes = growth.sizeBytes
        outcome.succeeded.store(true, ordering: .releasing)
    }

    /// False when there is no memory for the longer log.
    private mutating func growTracking(_ slot: Int, _ growth: DiskGrowth) -> Bool {
        // Taken out and put back, as in `setRecording`.
        guard let old = disks[slot].tracking else { return true }
        var grown: HomeTracking?
        if let seed = growth.tracking, !old.intent.isLost {
            let pages = seed.log.slotBytes / BufferArena.pageBytes
            guard let buffer = arena.allocate(pages: pages) else { return false }
            seed.recording.takeOver(from: old.recording, aheadBlocks: growth.aheadBlocks)
            let edge = disks[slot].sizeBytes
            if edge < growth.aheadStart {
                seed.recording.mark(offset: edge, length: growth.aheadStart - edge)
            }
            // The log that was replaced on disk no longer says which regions were marked in it.
            var intent = WriteIntent(
                regionCount: seed.log.shape.regionCount, tokenLimit: Limits.piecesPerRing,
                generation: IntentLogFile.firstGeneration, isAllMarked: true)
            if old.intent.isClearingStopped { intent.stopClearing() }
            grown = HomeTracking(
                recording: seed.recording, intent: intent, log: seed.log,
                directory: seed.directory, logBuffer: buffer, logPages: pages,
                isClearingHeld: old.isClearingHeld)
        }
        // Without a seed the tracking was given up before: it ends, as it knows only the old size.
        arena.free(old.logBuffer, pages: old.logPages)
        disks[slot].tracking = nil
        disks[slot].tracking = grown
        return true
    }
}
