import Disk
import PointInTime
import ScratchFiles
import SystemLayer

/// Why a job's disk broke, in words.
struct BreakReason: Sendable {
    /// For whoever reads the backup: without paths of the server.
    let text: String
    /// For whoever runs the server: what it was, and what to do.
    let remedy: String

    /// Both.
    var whole: String { "\(text); \(remedy)" }
}

extension BackupExport {
    /// Why the job's disk breaks.
    func reason(for cause: BreakCause) -> BreakReason {
        BreakReason(text: text(for: cause), remedy: remedy(for: cause))
    }

    private func text(for cause: BreakCause) -> String {
        switch cause {
        case .sourceRead(let errno):
            "old data of disk '\(target)' could not be read (\(SystemFault.text(for: errno)))"
        case .scratchWrite(let errno):
            goneText(errno)
                ?? "scratch of disk '\(target)' could not be written"
                + " (\(SystemFault.text(for: errno)))"
        case .scratchFull: "scratch of disk '\(target)' is full"
        case .copyTimeout(let milliseconds):
            "a guest write to disk '\(target)' was held for more than \(milliseconds) ms"
        case .scratchRead(let errno):
            goneText(errno)
                ?? "scratch of disk '\(target)' could not be read"
                + " (\(SystemFault.text(for: errno)))"
        case .scratchLost(let errno):
            goneText(errno)
                ?? "scratch of disk '\(target)' lost what was written to it"
                + " (\(SystemFault.text(for: errno)))"
        case .sourceLost(let errno):
            "writes of the machine to disk '\(target)' were lost (\(SystemFault.text(for: errno)))"
        case .spaceForGuest:
            "scratch of disk '\(target)' gave way: its file system also holds a machine's disk, and"
                + " no space is left for both"
        }
    }

    private func remedy(for cause: BreakCause) -> String {
        switch cause {
        case .sourceRead, .sourceLost: "check the storage of '\(source.path)'"
        case .scratchWrite(Errno.noSpace), .scratchWrite(Errno.quota), .scratchFull:
            "give the next backup more room than '\(scratch.path)' has, or pull it sooner"
        case .scratchWrite, .scratchRead, .scratchLost:
            scratch.remote == nil
                ? "check the storage of '\(scratch.path)'"
                : "check the server of '\(scratch.path)' and the way to it"
        case .copyTimeout:
            "see whether '\(scratch.path)' or the disk is too slow, or raise --copy-timeout"
        case .spaceForGuest:
            "put scratch elsewhere than '\(scratch.path)', with --scratch-dir or in the request"
        }
    }
}
