package import Foundation

/// A backup export as clients are told of it.
package struct ExportView: Sendable, Hashable, Codable {
    /// The disk's target.
    package var disk: String
    /// Export name.
    package var name: String
    package var uri: String
    /// The dirty bitmap's name (`qemu:dirty-bitmap:` + this), or nil in a full backup.
    package var bitmap: String?
    /// Bitmaps from other bases that the export offers besides.
    package var moreBitmaps: [BackupPlan.Bitmap]?
    /// The checkpoint that the backup of the disk starts from, or nil in a full backup.
    package var incremental: String?
    /// Why the backup is full although a checkpoint was asked for.
    package var fallbackReason: String?

    // Written by hand so that an absent bitmap is an explicit null.
    package func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(disk, forKey: .disk)
        try container.encode(name, forKey: .name)
        try container.encode(uri, forKey: .uri)
        try container.encode(bitmap, forKey: .bitmap)
        try container.encodeIfPresent(moreBitmaps, forKey: .moreBitmaps)
        try container.encodeIfPresent(incremental, forKey: .incremental)
        try container.encodeIfPresent(fallbackReason, forKey: .fallbackReason)
    }
}

/// What a push writes of one disk.
package struct PushTargetView: Sendable, Hashable, Codable {
    /// The disk's target.
    package var disk: String
    /// Where the result is once the job is completed.
    package var path: String
    /// `raw` or `qcow2`.
    package var format: String
    /// The checkpoint that the backup of the disk starts from, or nil in a full backup.
    package var incremental: String?
    /// Why the backup is full although a checkpoint was asked for.
    package var fallbackReason: String?
}

/// A begun job: what `backup-begin` prints.
package struct BegunJob: Sendable, Hashable, Codable {
    package var id: String
    /// None of a push.
    package var exports: [ExportView]
    /// What a push writes.
    package var targets: [PushTargetView]?
    /// Name of the checkpoint made in the same instant.
    package var checkpoint: String?
    /// What the job does not have that it should; nil: nothing.
    package var warning: String?

    package init(
        id: String, exports: [ExportView], targets: [PushTargetView]? = nil,
        checkpoint: String? = nil, warning: String? = nil
    ) {
        self.id = id
        self.exports = exports
        self.targets = targets
        self.checkpoint = checkpoint
        self.warning = warning
    }
}

/// One running job in a list.
package struct JobView: Sendable, Hashable, Codable {
    package var id: String
    package var domain: String
    /// `starting`, `running`, `broken` or `ending`.
    package var state: String
    /// When it began.
    package var begun: Date
    /// Why it broke.
    package var errorMessage: String?
    /// When it will be ended by itself.
    package var expires: Date?
    package var exports: [ExportView]
    /// Name of the checkpoint made in the job's instant.
    package var checkpoint: String?
    /// Whether its clients have to use TLS.
    package var tls: Bool
    /// What a push writes.
    package var targets: [PushTargetView]?
}

/// Figures of one disk of a job.
package struct JobDiskView: Sendable, Hashable, Codable {
    package var disk: String
    /// Bytes.
    package var size: UInt64
    /// Bytes of scratch in use.
    package var scratchUsed: UInt64
    package var preservedClusters: UInt64
    package var zeroClusters: UInt64
    /// Bytes sent to backup clients.
    package var bytesRead: UInt64
    /// Bytes that one client has to read for the backup: of an incremental one the dirty bytes, of
    /// a full one what the disk's source took at the begin.
    ///
    /// Nil in records of versions that did not keep it.
    package var bytesToRead: UInt64?
}

extension JobDiskView {
    /// How far a backup of the disk has come; a client that reads more than it has to is done.
    package var progress: UInt64 { min(bytesRead, bytesToRead ?? 0) }
}

/// What `domjobinfo` tells of a job, running or finished.
package struct JobInfo: Sendable, Hashable, Codable {
    /// `None`, `Unbounded`, `Completed`, `Failed`, `Cancelled`.
    package var jobType: String
    /// `Backup`.
    package var operation: String?
    package var id: String?
    package var domain: String?
    package var state: String?
    package var begun: Date?
    /// Milliseconds.
    package var timeElapsed: UInt64?
    /// Scratch bytes in use, over all disks.
    package var tempUsed: UInt64?
    /// Sum of the disks' sizes, bytes: the most that scratch can come to.
    package var tempTotal: UInt64?
    /// Bytes that clients have read of what the backup holds, over all disks; nil while nobody has
    /// come for it.
    package var bytesRead: UInt64?
    /// Bytes that the backup holds, read or not: the dirty bytes of incremental disks, what their
    /// sources took at the begin of others; nil as above.
    package var bytesToRead: UInt64?
    package var clients: Int?
    /// Whether its clients have to use TLS; only while it runs.
    package var tls: Bool?
    /// How long guest writes were held at the begin.
    ///
    /// Nanoseconds.
    package var holdNanoseconds: UInt64?
    /// Only of finished jobs.
    package var success: Bool?
    /// Of finished jobs: `completed`, `aborted`, `failed`, `cancelled`.
    package var outcome: String?
    /// When it ended.
    package var ended: Date?
    /// Name of the checkpoint made in the job's instant.
    package var checkpoint: String?
    /// Of finished jobs with a checkpoint: false when it was taken back.
    package var checkpointKept: Bool?
    package var errorMessage: String?
    package var disks: [JobDiskView]?
    /// What a push writes, or has written.
    package var targets: [PushTargetView]?

    /// What there is to say when no job runs.
    package static let none = JobInfo(jobType: "None")

    package init(jobType: String) { self.jobType = jobType }
}

/// One disk of a domain as `domblklist` shows it.
package struct DiskView: Sendable, Hashable, Codable {
    /// The disk's target.
    package var disk: String
    /// Path of the source, or nil for an empty drive.
    package var source: String?
    /// `file` or `block`.
    package var type: String
    /// `disk`, `cdrom`, ...
    package var device: String
    package var readOnly: Bool
    /// Bytes.
    package var size: UInt64?
    /// NBD URI of the live export.
    package var uri: String?
    /// Path of the socket by which a machine may have the disk with vhost-user.
    package var vhostSocket: String?
    package var clients: Int?
    /// Bytes changed since the newest checkpoint; of a disk whose changes are not tracked, since
    /// it was attached.
    package var dirtyBytes: UInt64?
    /// Bytes that a backup job of the last hour would have kept in scratch at most, about 3 % off;
    /// counted from the server's start.
    package var overwrittenLastHour: UInt64?
    /// Checkpoints that an incremental backup of the disk can start from, oldest first.
    package var checkpoints: [String]?
    /// Bytes that one bit of its dirty bitmaps covers.
    package var granularityBytes: UInt32?
    /// Bytes that count as changed to be safe, after an unclean stop.
    package var recoveredBytes: UInt64?
    /// Why older checkpoints of the disk are gone.
    package var trackingProblem: String?
    /// Why the disk is not served.
    package var errorMessage: String?

    package init(
        disk: String, source: String?, type: String, device: String, readOnly: Bool
    ) {
        self.disk = disk
        self.source = source
        self.type = type
        self.device = device
        self.readOnly = readOnly
    }
}

/// One domain in a list.
package struct DomainView: Sendable, Hashable, Codable {
    package var domain: String
    package var uuid: String
    /// Disks defined.
    package var disks: Int
    /// Disks that cannot be served now.
    package var failedDisks: Int
    /// Backup jobs that have not ended.
    package var jobs: Int
    /// A line for each disk that cannot be served now; absent when there is none.
    package var problems: [String]?
}
