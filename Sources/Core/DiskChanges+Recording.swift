package import Tracking

/// Changes are recorded: what the write-intent log and the bits' own file report.
extension DiskChanges {
    /// Changes are recorded from now on, or no longer; none is in flight.
    ///
    /// `regionShift`: log2 of the bytes of a region of the log.
    package mutating func record(in log: WriteIntent, regionShift: UInt64) {
        precondition(inFlight == 0, "every change in flight is known to the log")
        intent = RecordedRegions(log: log, shift: regionShift)
    }

    /// Changes are not recorded any more; none is in flight.
    package mutating func stopRecording() {
        precondition(inFlight == 0, "every change in flight is known to the log")
        intent = nil
    }

    /// What the log must hold when it is written: one bit a region.
    package var logWords: [UInt64] { intent?.log.words ?? [] }
    /// Whether changes wait for the log that is being written.
    package var isLogAwaited: Bool { intent?.log.isAwaited ?? false }
    /// Whether the log or the bits are being written.
    package var isRecordBusy: Bool { intent?.log.isBusy ?? false }
    package var isRecordLost: Bool { intent?.log.isLost ?? false }
    /// Whether marks are kept for good, as bits could not be made durable.
    package var keepsMarks: Bool { intent?.log.isClearingStopped ?? false }

    /// The log is durable as its words were, or may be not.
    package mutating func logWritten(succeeded: Bool) {
        intent?.log.logWritten(succeeded: succeeded)
    }

    /// The bits that were set are durable, or may be not.
    package mutating func bitsSynced(succeeded: Bool) {
        intent?.log.bitsSynced(succeeded: succeeded)
    }

    /// They could not be synced, for a reason that lies elsewhere: a later clearing tries again.
    package mutating func bitsNotSynced() { intent?.log.bitsNotSynced() }

    /// Begins to take idle regions out of the log.
    package mutating func startClearing() { intent?.log.startClearing() }

    /// Changes can no longer be recorded: `.declareLoss` follows, and what waits for the log goes
    /// when that is answered.
    package mutating func loseRecord() { intent?.log.giveUp() }

    /// Takes `.declareLoss` before its turn, for a driver that is about to submit a change which it
    /// could not mark; true when it was owed.
    package mutating func takeLoss() -> Bool { intent?.log.takeLoss() ?? false }

    /// It is said, as durably as can be, that changes are not recorded.
    package mutating func lossDeclared() { intent?.log.lossDeclared() }
}
