import Core
import Disk
import ServerInterface
import Synchronization
import SystemLayer
import Tables
import Tracking
import TrackingFiles

/// A disk becomes larger on its home ring.
extension RingLoop where IO: ~Copyable {
    /// While the disk is held: it ends later from now on, and the new part is dirty.
    ///
    /// Refused, to be tried again, while a job or the write-intent log is at work.
    mutating func grow(_ disk: DiskID, _ growth: DiskGrowth, _ claim: Claim) -> Bool {
        guard let slot = diskSlots[disk], disks[slot].changes.isQuiet,
            disks[slot].jobs.allSatisfy({ $0 == nil }),
            !disks[slot].changes.isRecordBusy || disks[slot].changes.isRecordLost, claim.take(),
            growTracking(slot, growth)
        else { return false }
        disks[slot].sizeBytes = growth.sizeBytes
        disks[slot].tailStart = growth.sizeBytes
        resizeGuests(of: slot)
        return true
    }

    /// False when there is no memory for more bits.
    private mutating func growTracking(_ slot: DiskIndex, _ growth: DiskGrowth) -> Bool {
        // Taken out and put back, as in `setRecording`.
        guard let old = disks[slot].tracking else { return true }
        var grown: HomeTracking?
        if let (log, blockCount) = growth.tracking, !disks[slot].changes.isRecordLost {
            guard
                let recording = try? old.recording.grown(
                    to: blockCount, from: disks[slot].sizeBytes, diskBytes: growth.sizeBytes)
            else { return false }
            // The log that was replaced on disk no longer says which regions were marked in it.
            var intent = WriteIntent(
                regionCount: log.shape.regionCount, changeLimit: Limits.piecesPerRing,
                generation: IntentLogFile.firstGeneration, isAllMarked: true)
            if disks[slot].changes.keepsMarks { intent.stopClearing() }
            growth.recording.set(recording)
            grown = HomeTracking(
                recording: recording, log: log, doubt: old.doubt,
                isClearingPaused: old.isClearingPaused, ticks: old.ticks)
            disks[slot].changes.record(in: intent, regionShift: log.regionShift)
        } else {
            // Given up before: it ends, as it knows only the old size.
            disks[slot].changes.stopRecording()
        }
        disks[slot].tracking = nil
        disks[slot].tracking = grown
        return true
    }
}
