/// A rule that the world's drivers break on purpose, or a mend that they take out: the seeds must
/// find it, or their silence means nothing.
///
/// Production code stays as it is: what breaks is how it is driven, or what storage tells it.
package enum Canary: String, CaseIterable, Sendable {
    /// A change is made although it has to wait for a copy.
    case releasesBeforeCopy
    /// A change is made when the old content is in memory, not yet kept.
    case releasesBeforePublishing
    /// Clusters are called holes without a look.
    case notesHolesUnseen
    /// A copy counts as kept before it is written.
    case publishesBeforeCopy
    /// A read asks the ledger before it reads, not after.
    case checksBeforeRead
    /// A disk says that it is quiet while changes are in flight.
    case quietBeforeChangesEnd
    /// Each disk does its part of an instant and goes on as soon as it is quiet itself.
    case fixesDiskByDisk
    /// A checkpoint is made without the ring recording in its layer.
    case sealsWithoutSwap
    /// Marks leave the log between a checkpoint's instant and its record.
    case clearsWhileSealing
    /// Marks leave the log although the bits were not saved.
    case clearsBeforeSync
    /// After a save that failed the same file is synced again and believed.
    case believesAfterError
    /// What a sync reports is not looked at.
    case hidesErrors
    /// Bits are set after the change.
    case marksAfterChange
    /// Changes go on after a loss of tracking that was not said.
    case losesSilently
    /// A durable write is answered before its sync.
    case answersBeforeSync
    /// A sync that failed is made again and believed.
    case triesSyncAgain
    /// Marks leave the log, or a new log begins, before the disk itself is synced.
    case forgetsDisk
    /// Writes that the disk loses later are nobody's business.
    case ignoresLostWrites
    /// A sync that failed is forgotten by the next one.
    case forgetsFailedSync
    /// What a killed process wrote to a ledger last has not come to its file: an entry that comes
    /// after the guest's write.
    case entersLate
    /// Fault A1: scratch is never asked whether it has lost something.
    case trustsScratch
    /// Fault A1, half mended: scratch is asked before it is read.
    case asksScratchBeforeReading
    /// Fault A2: a disk whose tracking cannot be opened is served without a word.
    case servesSilently
    /// Fault A3: giving checkpoints up fails, and nobody tries again.
    case forgetsToGiveUp
    /// Fault B6: what a broken job still writes is waited for.
    case waitsForBrokenJobs
    /// Fault B8: zeroing that is to be durable gives its place up before its sync, which takes
    /// another.
    case givesPlaceUpBeforeSync
}
