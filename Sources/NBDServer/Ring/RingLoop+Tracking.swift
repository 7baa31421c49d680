import Bitmap
import IORing
import Synchronization

/// Changes are recorded: durably marked by region before they are made, by block when they are.
extension RingLoop {
    // MARK: Under a change

    /// Whether the change may be submitted now; otherwise it waits for the write-intent log.
    mutating func isMarked(_ piece: Int) -> Bool {
        let disk = pieces[piece].disk
        guard disks[disk].tracking != nil else { return true }
        let regions = IntentLogFile.regions(
            touching: pieces[piece].offset, length: pieces[piece].count)
        guard disks[disk].tracking?.intent.admit(token: piece, regions: regions) == .held else {
            return true
        }
        pieces[piece].stage = .heldForIntent
        performIntent(disk)
        return false
    }

    /// Sets the bits of bytes that are about to change.
    mutating func record(_ disk: Int, _ bytes: Range<UInt64>) {
        disks[disk].tracking?.recording.mark(
            offset: bytes.lowerBound, length: bytes.upperBound - bytes.lowerBound)
    }

    /// The change is complete or has failed.
    mutating func unmark(_ piece: Piece) {
        guard disks[piece.disk].tracking != nil else { return }
        disks[piece.disk].tracking?.intent.finished(
            regions: IntentLogFile.regions(touching: piece.offset, length: piece.count))
    }

    // MARK: The write-intent log

    mutating func performIntent(_ disk: Int) {
        while let action = disks[disk].tracking?.intent.nextAction() {
            switch action {
            case .writeLog(let generation): writeLog(disk, generation)
            case .syncBits:
                guard let recording = disks[disk].tracking?.recording else { return }
                ring.prepareSync(recording.raw, tag: OperationTag(.intentSync, slot: disk).raw)
            case .release(let token): submitMarked(token)
            case .trackingLost:
                // On this thread, before the writes that wait for the log are let go unrecorded.
                if let directory = disks[disk].tracking?.directory {
                    TrackingStore.giveUp(directory: directory)
                }
                shared.emit(.trackingLost(disk: disks[disk].export.disk))
            }
        }
    }

    private mutating func writeLog(_ disk: Int, _ generation: UInt64) {
        guard let tracking = disks[disk].tracking else { return }
        let slot = tracking.log.encode(tracking.intent.words, generation: generation)
        var span = arena.mutableBytes(tracking.logBuffer, count: slot.bytes.count)
        for index in slot.bytes.indices {
            span.storeBytes(of: slot.bytes[index], toByteOffset: index, as: UInt8.self)
        }
        ring.prepareWrite(
            tracking.log.raw, from: arena, at: tracking.logBuffer, count: slot.bytes.count,
            filePosition: slot.position, durable: true,
            tag: OperationTag(.intentLog, slot: disk, detail: slot.bytes.count >> 9).raw)
    }

    mutating func intentLogWritten(_ disk: Int, _ expectedSectors: Int, result: Int32) {
        let succeeded = result >= 0 && Int(result) >> 9 == expectedSectors
        disks[disk].tracking?.intent.logWritten(succeeded: succeeded)
        performIntent(disk)
    }

    mutating func intentBitsSynced(_ disk: Int, result: Int32) {
        disks[disk].tracking?.intent.bitsSynced(succeeded: result >= 0)
        performIntent(disk)
    }

    mutating func tickTracking(_ disk: Int) {
        guard disks[disk].tracking != nil else { return }
        disks[disk].tracking?.ticks += 1
        guard (disks[disk].tracking?.ticks ?? 0) >= Limits.intentClearingTicks,
            !(disks[disk].tracking?.isClearingHeld ?? true)
        else { return }
        disks[disk].tracking?.ticks = 0
        disks[disk].tracking?.intent.startClearing()
        performIntent(disk)
    }

    // MARK: Checkpoints

    /// While the disk is held: changes are recorded in `next` from now on.
    mutating func swapRecording(_ disk: DiskID, _ next: RecordingLayer, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk] else { return }
        precondition(disks[slot].isHeld && disks[slot].changesInFlight == 0)
        setRecording(slot, next, isClearingHeld: true)
    }

    /// The checkpoint could not be made: the old layer goes on, with what the new one has recorded.
    mutating func unswapRecording(_ disk: DiskID, _ old: RecordingLayer, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk], let tracking = disks[slot].tracking else { return }
        old.formUnion(tracking.recording.snapshot())
        setRecording(slot, old, isClearingHeld: false)
    }

    /// Written as take and put back: Swift 6.3 never releases what an assignment through an optional
    /// chain replaces inside a noncopyable value, and a layer would stay mapped for ever.
    private mutating func setRecording(
        _ slot: Int, _ layer: RecordingLayer, isClearingHeld: Bool
    ) {
        guard var tracking = disks[slot].tracking else { return }
        disks[slot].tracking = nil
        tracking.recording = layer
        tracking.isClearingHeld = isClearingHeld
        disks[slot].tracking = tracking
    }

    mutating func sealedDurably(_ disk: DiskID) {
        guard let slot = diskSlots[disk] else { return }
        disks[slot].tracking?.isClearingHeld = false
    }

    mutating func snapshotRecording(_ disk: DiskID, _ box: BitmapBox, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk], let tracking = disks[slot].tracking else { return }
        box.put(tracking.recording.snapshot())
    }

    mutating func addBits(_ disk: DiskID, _ bits: DirtyBitmap, _ latch: Latch) {
        defer { latch.arrive() }
        guard let slot = diskSlots[disk] else { return }
        disks[slot].tracking?.recording.formUnion(bits)
    }
}
