/// A lie that the simulated kernel tells, or a rule that the world around the rings breaks on
/// purpose: the seeds must find it, or their silence means nothing.
///
/// The loop stays as it is.
enum ServerCanary: String, CaseIterable, Sendable {
    /// A durable write completes before it is durable.
    case answersBeforeSync
    /// A sync completes and makes nothing durable.
    case syncsNothing
    /// A write completes before it is made.
    case answersBeforeWriting
    /// A read completes although not all of it was read.
    case readsShort
    /// What was read is looked at once more when it is sent: after the ledger was asked.
    case readsAgainWhenSending
    /// Everything is called a hole.
    case findsHoles
    /// A write to scratch is reported before it is made.
    case keepsBeforeWriting
    /// The first write to scratch that fails is reported as done.
    case hidesScratchErrors
    /// Fault A1: nobody is told that scratch has lost something.
    case trustsScratch
    /// Writes that a disk has lost are told to one call, and no witness hears of them.
    case forgetsLostWrites
    /// Marks leave the log before the disk itself is synced.
    case forgetsDisk
    /// Fault A5: the checkpoint of a job that has failed stays.
    case keepsFailedCheckpoint
    /// Fault B7: the kernel's workers stay as few as they are, whatever hangs.
    case keepsWorkers
    /// A connection gets lost on its way from one ring to another.
    case losesConnection
    /// A socket that takes more is not heard of.
    case missesWritable
    /// What a killed process wrote to a ledger last has not come to its file.
    case entersLate
    /// What is read for a guest that shares its memory comes there after the completion.
    case answersBeforeFilling
    /// The in-flight area of a server that has gone is handed to the next one empty.
    case forgetsInflight
    /// What a killed server wrote to the in-flight area last has not come there.
    case returnsPastInflight
    /// A job goes on although its scratch has lost what was written to it.
    case resumesLost
}
