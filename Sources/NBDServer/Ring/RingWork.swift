import Disk
import IORing
import ServerInterface
import TrackingFiles

/// What a ring has others do, because it may take for ever: the outcome comes back as a message.
enum RingWork: Sendable {
    /// Write the write-intent log; `.intentLogWritten` follows.
    case writeLog(DiskID, IntentLogFile, words: [UInt64], generation: UInt64)
    /// Make what was written to the source durable, then the bits that are set now; `.bitsSaved`
    /// follows.
    case saveBits(DiskID, RecordingLayer, RawSource)
    /// Say, wherever that can be said, that the disk's changes are not recorded; `.lossDeclared`
    /// follows the first attempt.
    case declareLoss(DiskID, TrackingDoubt)
    /// Write old content to scratch; `.scratchWritten` follows unless the write is revoked before
    /// it has begun.
    ///
    /// The bytes stay as they are until then.
    case writeScratch(BackupExport, ScratchTicket, LentBytes, position: UInt64)
    /// Nobody reads the job's scratch any more: give its room back. Nothing follows.
    case emptyScratch(BackupExport)
    /// The disk of the job is detached: nothing more is asked of its scratch. Nothing follows.
    case closeScratch(BackupExport)
    /// Break the jobs with scratch on the file system and give their room back; `.spaceReclaimed`
    /// follows, at the latest after `Limits.reclaimNanoseconds`.
    ///
    /// Where no job has room left to give, a change that asks first is answered as well if there
    /// was some a moment ago: its write may have failed just before.
    case reclaim(fileSystem: UInt64, piece: PieceIndex, isFirst: Bool)
}
