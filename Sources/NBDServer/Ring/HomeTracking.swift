import Bitmap

/// A disk's change tracking on its home ring.
struct HomeTracking {
    /// Where changes are recorded now.
    var recording: RecordingLayer
    var intent: WriteIntent
    let log: IntentLogFile
    let directory: String
    /// Arena offset of the buffer that the log is written from.
    let logBuffer: Int
    let logPages: Int
    /// Between a checkpoint's instant and its record no mark leaves the log: the layer that was
    /// sealed may not be durable yet.
    var isClearingHeld = false
    /// Clock ticks since idle regions were last looked for.
    var ticks = 0
}
