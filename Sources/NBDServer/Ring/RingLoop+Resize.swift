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
            !(disks[slot].tracking?.intent.isBusy ?? false), outcome.take(),
            growTracking(slot, growth)
        else { return }
        disks[slot].sizeBytes = growth.sizeBytes
        disks[slot].tailStart = growth.sizeBytes
        outcome.succeeded.store(true, ordering: .releasing)
    }

    /// False when there is no memory for more bits.
    private mutating func growTracking(_ slot: DiskIndex, _ growth: DiskGrowth) -> Bool {
        // Taken out and put back, as in `setRecording`.
        guard let old = disks[slot].tracking else { return true }
        var grown: HomeTracking?
        if let (log, blockCount) = growth.tracking, !old.intent.isLost {
            guard
                let recording = try? old.recording.grown(
                    to: blockCount, from: disks[slot].sizeBytes, diskBytes: growth.sizeBytes)
            else { return false }
            // The log that was replaced on disk no longer says which regions were marked in it.
            var intent = WriteIntent(
                regionCount: log.shape.regionCount, changeLimit: Limits.piecesPerRing,
                generation: IntentLogFile.firstGeneration, isAllMarked: true)
            if old.intent.isClearingStopped { intent.stopClearing() }
            growth.recording.set(recording)
            grown = HomeTracking(
                recording: recording, intent: intent, log: log, doubt: old.doubt,
                regionShift: log.regionShift, isClearingHeld: old.isClearingHeld)
        }
        // Without a log the tracking was given up before: it ends, as it knows only the old size.
        disks[slot].tracking = nil
        disks[slot].tracking = grown
        return true
    }
}
