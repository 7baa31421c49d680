import Core
import Disk
import ServerInterface
import Synchronization
import SystemLayer
import Tables
import Tracking
import TrackingFiles

/// Changes are recorded: durably marked by region before they are made, by block when they are.
extension RingLoop where IO: ~Copyable {
    // MARK: Under a change

    /// Sets the bits of bytes that are about to change.
    mutating func record(_ disk: DiskIndex, _ bytes: Range<UInt64>) {
        let isRight = disks[disk].tracking?.recording.mark(
            offset: bytes.lowerBound, length: bytes.upperBound - bytes.lowerBound)
        if isRight == false { loseTracking(disk, Self.wrongLiveBits) }
    }

    private static var wrongLiveBits: String {
        "its bits in memory can neither be written nor removed"
    }

    // MARK: The write-intent log

    mutating func writeLog(_ disk: DiskIndex, _ generation: UInt64) {
        guard let tracking = disks[disk].tracking else { return }
        disks[disk].tracking?.logDeadline =
            now + UInt64(shared.configuration.trackingTimeoutSeconds) * 1_000_000_000
        let id = disks[disk].export.disk
        let isStarted = io.start(
            .writeLog(
                id, tracking.log, words: disks[disk].changes.logWords, generation: generation))
        if !isStarted { mailbox.post(.intentLogWritten(id, Self.noThread)) }
    }

    mutating func intentLogWritten(_ id: DiskID, _ fault: SystemFault?) {
        guard let disk = diskSlots[id], disks[disk].tracking != nil else { return }
        if let fault {
            disks[disk].tracking?.lossReason =
                "write of the write-intent log: \(fault.call): \(fault.errorText)"
        }
        disks[disk].tracking?.logDeadline = .max
        disks[disk].changes.logWritten(succeeded: fault == nil)
        perform(disk)
    }

    mutating func saveBits(_ disk: DiskIndex) {
        guard let recording = disks[disk].tracking?.recording else { return }
        let id = disks[disk].export.disk
        if !io.start(.saveBits(id, recording, disks[disk].export.source)) {
            mailbox.post(.bitsSaved(id, Self.noThread))
        }
    }

    private static var noThread: SystemFault {
        SystemFault(call: "pthread_create", errno: Errno.again)
    }

    mutating func bitsSaved(_ id: DiskID, _ fault: SystemFault?) {
        guard let disk = diskSlots[id], disks[disk].tracking != nil else { return }
        if let fault, fault.saysNothing {
            // It was not the storage that failed: the next tick tries again.
            disks[disk].changes.bitsNotSynced()
        } else {
            disks[disk].changes.bitsSynced(succeeded: fault == nil)
        }
        noticeLoss(disk)
        if let fault, !fault.saysNothing { reportFailedSave(disk, fault) }
        perform(disk)
    }

    private mutating func reportFailedSave(_ disk: DiskIndex, _ fault: SystemFault) {
        guard !disks[disk].changes.isRecordLost,
            disks[disk].tracking?.isSaveFaultReported == false
        else { return }
        disks[disk].tracking?.isSaveFaultReported = true
        shared.emit(
            .trackingProblem(
                disk: disks[disk].export.disk,
                detail: "its bits cannot be made durable (\(fault.call): \(fault.errorText)):"
                    + " after an unclean stop whole regions count as changed"))
    }

    mutating func tickTracking(_ disk: DiskIndex) {
        guard let tracking = disks[disk].tracking else { return }
        if now > tracking.logDeadline, disks[disk].changes.isLogAwaited {
            loseTracking(
                disk,
                "a write of the write-intent log has not ended after"
                    + " \(shared.configuration.trackingTimeoutSeconds) s")
        }
        if now > tracking.lossDeadline { lossDeclared(disks[disk].export.disk) }
        if tracking.ticks.isMultiple(of: Limits.lossTicks) { noticeLoss(disk) }
        disks[disk].tracking?.ticks += 1
        guard tracking.ticks + 1 >= Limits.intentClearingTicks, !tracking.isClearingPaused else {
            return
        }
        disks[disk].tracking?.ticks = 0
        disks[disk].changes.startClearing()
        perform(disk)
    }

    // MARK: Loss

    /// A disk that has lost writes is not what was recorded of it: what is clean may have changed.
    mutating func noticeLoss(_ disk: DiskIndex) {
        guard disks[disk].export.source.hasLostWrites else { return }
        // The kernel has told it, and tells the next process nothing.
        if disks[disk].syncErrno == nil, !disks[disk].hasUnheardLoss,
            disks[disk].export.source.unheardLoss != nil
        {
            disks[disk].hasUnheardLoss = true
            disks[disk].tracking?.doubt.say(isUnheard: true)
        }
        guard !disks[disk].changes.isRecordLost else { return }
        loseTracking(disk, TrackingLoss.lostWrites)
    }

    /// Changes can no longer be recorded safely.
    private mutating func loseTracking(_ disk: DiskIndex, _ reason: String) {
        disks[disk].tracking?.lossReason = reason
        disks[disk].changes.loseRecord()
        // Said before the next change, and that may be one which is being submitted.
        if disks[disk].changes.takeLoss() { declareLoss(disk) }
        perform(disk)
    }

    /// Says that tracking is lost: at once in memory, and everywhere else on a thread that may
    /// wait.
    ///
    /// The changes that wait for the log go when it is said, or when that takes too long.
    mutating func declareLoss(_ disk: DiskIndex) {
        guard let tracking = disks[disk].tracking else { return }
        let id = disks[disk].export.disk
        _ = tracking.doubt.sayInMemory()
        shared.emit(.trackingLost(disk: id, detail: tracking.lossReason))
        disks[disk].tracking?.lossDeadline = now + Limits.lossNanoseconds
        if !io.start(.declareLoss(id, tracking.doubt)) { mailbox.post(.lossDeclared(id)) }
    }

    mutating func lossDeclared(_ id: DiskID) {
        guard let disk = diskSlots[id], disks[disk].tracking != nil else { return }
        disks[disk].tracking?.lossDeadline = .max
        disks[disk].changes.lossDeclared()
        perform(disk)
    }

    // MARK: Checkpoints

    /// While the disk is held: changes are recorded in `next` from now on.
    mutating func swapRecording(_ disk: DiskID, _ next: RecordingLayer) {
        guard let slot = diskSlots[disk] else { return }
        precondition(disks[slot].changes.isQuiet)
        setRecording(slot, next, isClearingPaused: true)
    }

    /// The checkpoint could not be made: the old layer goes on, with what the new one has recorded.
    mutating func unswapRecording(_ disk: DiskID, _ old: RecordingLayer) {
        guard let slot = diskSlots[disk], let tracking = disks[slot].tracking else { return }
        let isRight = old.formUnion(tracking.recording.snapshot())
        setRecording(slot, old, isClearingPaused: false)
        if !isRight { loseTracking(slot, Self.wrongLiveBits) }
    }

    /// Written as take and put back: Swift 6.3 never releases what an assignment through an
    /// optional chain replaces inside a noncopyable value, and a layer would stay mapped for ever.
    private mutating func setRecording(
        _ slot: DiskIndex, _ layer: RecordingLayer, isClearingPaused: Bool
    ) {
        guard var tracking = disks[slot].tracking else { return }
        disks[slot].tracking = nil
        tracking.recording = layer
        tracking.isClearingPaused = isClearingPaused
        disks[slot].tracking = tracking
    }

    mutating func sealedDurably(_ disk: DiskID) {
        resumeClearing(disk)
    }

    /// No mark leaves the log until `resumeClearing`; whether nothing is being written for the
    /// record by now.
    mutating func pauseClearing(_ disk: DiskID) -> Bool {
        guard let slot = diskSlots[disk] else { return true }
        disks[slot].tracking?.isClearingPaused = true
        return !disks[slot].changes.isRecordBusy || disks[slot].changes.isRecordLost
    }

    mutating func resumeClearing(_ disk: DiskID) {
        guard let slot = diskSlots[disk] else { return }
        disks[slot].tracking?.isClearingPaused = false
    }

    mutating func snapshotRecording(_ disk: DiskID, _ box: BitmapBox) {
        guard let slot = diskSlots[disk], let tracking = disks[slot].tracking else { return }
        box.put(tracking.recording.snapshot())
    }

    mutating func addBits(_ disk: DiskID, _ bits: DirtyBitmap) {
        guard let slot = diskSlots[disk] else { return }
        if disks[slot].tracking?.recording.formUnion(bits) == false {
            loseTracking(slot, Self.wrongLiveBits)
        }
    }
}
