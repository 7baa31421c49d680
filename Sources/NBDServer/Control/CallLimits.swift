/// How long calls on the server wait for what may not answer; for paths and host names that callers
/// gave, the configuration says it.
extension Limits {
    /// A caller waits for disks that other calls are at work on, in milliseconds.
    package static let queueMilliseconds: Int32 = 60_000
    /// A ring answers control within this, in milliseconds: it never waits for anything, so one
    /// that does not is stuck in a call that should have returned at once.
    package static let ringMilliseconds: Int32 = 30_000
    /// A begin waits for a figure that it could do without, in milliseconds.
    package static let figureMilliseconds: Int32 = 1_000
    /// The end of a job waits for the file of its socket to be removed, in milliseconds.
    package static let closingMilliseconds: Int32 = 5_000
    /// A disk's last sync may have much to write, in milliseconds.
    package static let syncMilliseconds: Int32 = 120_000
    /// The same waits when the server stops: all of them together end within 80 s, before service
    /// managers lose their patience (90 s).
    ///
    /// Calls at work finish or are given up.
    package static let stopCallsMilliseconds: Int32 = 5_000
    /// In-flight requests of a job, or of connections that are asked to go; longer than a ring
    /// gives a connection to take its last replies.
    package static let stopDrainMilliseconds: Int32 = 12_000
    /// All disks together: connections, the sync of the source, the mark that its bits are exact.
    package static let stopDisksMilliseconds: Int32 = 35_000
    /// The same for another server to take their place: so long machines wait at most for requests
    /// of theirs that a disk does not answer, before this server goes on.
    package static let departureMilliseconds: Int32 = 6_000
    /// Writes of tracking and scratch that nobody waits for.
    package static let hushMilliseconds: Int32 = 3_000
    /// Files that were let go of are closed.
    package static let releaseMilliseconds: Int32 = 2_000
    /// Rings end.
    package static let stopRingsMilliseconds: Int32 = 12_000
}
