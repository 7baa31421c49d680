/// Why the server could not do what control asked of it.
///
/// Nothing has changed when one is thrown.
package enum ServerFault: Error, Sendable, Hashable {
    /// The source cannot be opened or is of the wrong kind; `detail` says which call failed and
    /// why.
    case sourceUnusable(path: String, detail: String)
    /// Another process holds the source (qemu's image locks).
    case sourceLocked(path: String, detail: String)
    /// The source is served already: another name of it was given, or the same.
    case sourceServed(path: String, export: String)
    case exportNameTaken(name: String)
    case unknownDisk
    /// Requests or a job still use the disk.
    case diskBusy(name: String)
    /// Clients are connected to the disk's live export.
    case diskInUse(name: String, clients: Int)
    /// The disk cannot be made this large; `detail` says why.
    case resizeRefused(name: String, detail: String)
    /// The disk has no such checkpoint in its chain (libvirt error 109: missing or broken bitmap).
    case checkpointUnusable(checkpoint: String, target: String, detail: String)
    /// The disk has a checkpoint of that name already.
    case checkpointExists(checkpoint: String, export: String)
    /// The disk's changes are not tracked.
    case notTracked(export: String, detail: String)
    /// A scratch file that must not exist does (libvirt error 8).
    case scratchExists(path: String, target: String)
    /// A scratch file cannot be created (libvirt error 38).
    ///
    /// `errorText` is strerror's.
    case scratchNotCreated(path: String, errorText: String)
    /// An existing scratch file or block device cannot be used (libvirt error 1).
    case scratchUnusable(path: String, detail: String)
    /// The listener cannot be bound (libvirt error 1).
    ///
    /// `errorText` is strerror's.
    case cannotListen(endpoint: String, errorText: String)
    case unknownJob(id: String)
    /// A job that an earlier process has left cannot be gone on with; `detail` says why.
    case jobNotResumed(detail: String)
    /// Guest writes already in flight did not finish in time, so no instant could be fixed.
    case holdTimedOut(milliseconds: UInt64)
    /// A named limit was reached.
    case limitReached(what: String, limit: Int)
    case shuttingDown
    /// Whoever begins a job did not want its instant any more.
    case givenUp
    /// The server cannot leave its disks to another one now, and goes on; `detail` says why.
    case cannotLeave(detail: String)
    /// What the caller named, a path or a host name, did not answer in time.
    ///
    /// Whatever the call produces later is undone.
    case timedOut(what: String, milliseconds: UInt64)
    /// So many calls wait already for what does not answer.
    case storageStuck(what: String, calls: Int)
    /// Another call is at work on the disks and does not end.
    case disksTaken(milliseconds: UInt64)
    /// A ring, a thread of the server, does not answer.
    case ringStuck(milliseconds: UInt64)
    /// Credentials or access rules cannot be loaded; `detail` names the file.
    case securityUnusable(detail: String)
    /// A listener was to offer TLS, for which there are no credentials.
    case tlsNotConfigured
    /// io_uring or another system facility is missing.
    case systemUnsupported(detail: String)
}

/// Events that the server reports to control.
package enum ServerEvent: Sendable {
    /// A job broke by itself; its exports answer EIO from now on.
    case jobBroken(id: String, reason: String)
    /// Scratch of a disk has crossed a share of its room, in percent.
    case scratchWatermark(id: String, target: String, usedBytes: UInt64, limitBytes: UInt64)
    /// Changes of a disk can no longer be recorded safely; its checkpoints are given up.
    case trackingLost(disk: DiskID, detail: String)
    /// Something is wrong with the tracking of a disk's changes that goes on all the same.
    case trackingProblem(disk: DiskID, detail: String)
    /// Something is wrong with a disk that goes on being served.
    case diskProblem(disk: DiskID, detail: String)
    /// A connection's TLS did not come about.
    case clientRefused(jobID: String?, reason: String)
    /// Something is wrong with a machine that comes with vhost-user, or with its hypervisor.
    case guestProblem(export: String, reason: String)
    case clientConnected(export: String, jobID: String?)
    case clientDisconnected(export: String, jobID: String?)
}
