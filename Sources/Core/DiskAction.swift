package import PointInTime
package import Tracking

/// What the driver of a disk's changes is to do; actions are carried out in order.
package enum DiskAction: Sendable, Hashable {
    /// The change that has waited may go: mark its blocks, then submit it. `finished` follows.
    case submit(ChangeID)
    /// The zeroing request is at work: take its first or next step.
    case zero(ZeroingID)
    /// Nothing is in flight on a held disk: its content stays as it is until it resumes.
    case quiet

    /// Read clusters from the source into the copy's buffer; answer with `sourceRead`.
    case readSource(CopyIndex, clusters: Range<Int>)
    /// Write clusters from the copy's buffer to neighbouring slots; answer with `scratchWritten`.
    case writeScratch(ScratchWrite)
    /// The copy is over: its buffer and its index are free.
    case copyDone(CopyIndex)
    /// The job is broken, its ledger closed: its writes to scratch may be given up and answered at
    /// once.
    case jobBroken(JobIndex, BreakCause)
    /// Nothing of the job is in flight any more; its index may be used again.
    case jobDetached(JobIndex)

    /// Write the log's present words durably; answer with `logWritten`.
    case writeLog(generation: UInt64)
    /// Make the bits that are set now durable; answer with `bitsSynced` or `bitsNotSynced`.
    case syncBits
    /// Changes can no longer be recorded safely: say so; answer with `lossDeclared`.
    case declareLoss
}
