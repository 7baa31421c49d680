import TrackingFiles

/// A disk's change tracking on its home ring.
struct HomeTracking {
    /// Where changes are recorded now.
    var recording: RecordingLayer
    let log: IntentLogFile
    /// Says where it can that changes are not recorded, if it comes to that.
    let doubt: TrackingDoubt
    /// When the log write in flight is given up, in nanoseconds of the clock.
    var logDeadline = UInt64.max
    /// When writes go although it is not yet said everywhere that tracking is lost.
    var lossDeadline = UInt64.max
    /// Why tracking is lost, as far as it is known.
    var lossReason = "the write-intent log cannot be written"
    /// The first failure to make bits durable was reported.
    var isSaveFaultReported = false
    /// Between a checkpoint's instant and its record no mark leaves the log: the layer that was
    /// sealed may not be durable yet.
    var isClearingPaused = false
    /// Clock ticks since idle regions were last looked for.
    var ticks: Int
}

/// Why tracking is given up, in words for people.
enum TrackingLoss {
    static let lostWrites = "the disk has lost writes that had succeeded"
}
