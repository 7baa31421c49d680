/// Where a listener is bound.
package enum ListenEndpoint: Sendable, Hashable, Codable {
    /// A unix stream socket; `mode` is the file's permission bits.
    ///
    /// A stale socket file is replaced, a live one is an error.
    case unix(path: String, mode: UInt32)
    /// A TCP socket.
    ///
    /// A nil port takes the first free one of 10809...10872.
    case tcp(host: String, port: UInt16?)
}

/// Where old content of one disk is kept while a job runs.
package struct ScratchConfiguration: Sendable, Hashable, Codable {
    package var kind: SourceKind
    package var path: String
    /// True: the file must exist already, is used as it is and is never removed
    /// (`--reuse-external`).
    ///
    /// False: a file is created 0600, must not exist before, and is removed at the job's end. Block
    /// devices always exist before and after.
    package var reuseExternal: Bool
    /// Of what is reached over a network: what an adapter opens; nil where `path` is the URI of
    /// another NBD server's export.
    package var image: ImageConfiguration?
    package init(
        kind: SourceKind, path: String, reuseExternal: Bool, image: ImageConfiguration? = nil
    ) {
        self.image = image
        self.kind = kind
        self.path = path
        self.reuseExternal = reuseExternal
    }
}

/// One disk's part in a job.
package struct JobDiskConfiguration: Sendable, Hashable {
    package var disk: DiskID
    /// The disk's target (`vda`): names the disk in errors and statistics.
    package var target: String
    /// Name of the backup export on the job's own listener.
    package var exportName: String
    package var scratch: ScratchConfiguration
    /// Present on incremental disks.
    package var incremental: IncrementalConfiguration?
    /// Bitmaps from other bases, which the export offers behind that one.
    package var moreBitmaps: [IncrementalConfiguration] = []
    /// All bitmaps that the export offers, in the order of its contexts.
    package var bitmaps: [IncrementalConfiguration] {
        (incremental.map { [$0] } ?? []) + moreBitmaps
    }
    package init(
        disk: DiskID, target: String, exportName: String, scratch: ScratchConfiguration,
        incremental: IncrementalConfiguration? = nil
    ) {
        self.incremental = incremental
        self.disk = disk
        self.target = target
        self.exportName = exportName
        self.scratch = scratch
    }
}

/// A backup job, fully decided: nothing is defaulted below this line but an automatic TCP port.
package struct JobConfiguration: Sendable {
    /// The job's UUID, lower case.
    package var id: String
    /// The domain's name, for access rules.
    package var domain: String
    package var disks: [JobDiskConfiguration]
    package var endpoint: ListenEndpoint
    package var security: ListenerSecurity
    /// A guest write held by copying for longer than this breaks the job, in milliseconds.
    package var copyTimeoutMilliseconds: UInt64
    /// A checkpoint made in the same instant; it stays when the job ends.
    package var checkpoint: CheckpointConfiguration?
    /// Clients may release clusters with TRIM: their scratch is reused, and later reads fail.
    package var clientRelease: Bool
    package init(
        id: String, domain: String = "", disks: [JobDiskConfiguration],
        endpoint: ListenEndpoint, security: ListenerSecurity = .plaintext,
        copyTimeoutMilliseconds: UInt64 = 30_000, checkpoint: CheckpointConfiguration? = nil,
        clientRelease: Bool = false
    ) {
        self.clientRelease = clientRelease
        self.checkpoint = checkpoint
        self.id = id
        self.domain = domain
        self.security = security
        self.disks = disks
        self.endpoint = endpoint
        self.copyTimeoutMilliseconds = copyTimeoutMilliseconds
    }
}

/// The result of beginning a job.
package struct JobStarted: Sendable {
    /// The endpoint with its real port.
    package var endpoint: ListenEndpoint
    /// How long guest writes were held so that all disks share one instant, in nanoseconds.
    package var holdNanoseconds: UInt64
    /// Size of each disk at the instant, by target, in bytes.
    package var diskSizes: [String: UInt64]
    /// The scratch files that were made, by path.
    package var scratchFiles: [String: ScratchFile]
    /// Where the next process finds what it needs to go on with the job; nil: it cannot.
    package var memory: String?
    /// Why `memory` is nil although the server was to keep its jobs, as the end of a sentence.
    package var notLasting: String?

    package init(
        endpoint: ListenEndpoint, holdNanoseconds: UInt64, diskSizes: [String: UInt64],
        scratchFiles: [String: ScratchFile] = [:]
    ) {
        self.scratchFiles = scratchFiles
        self.endpoint = endpoint
        self.holdNanoseconds = holdNanoseconds
        self.diskSizes = diskSizes
    }
}

/// Distinguishes a scratch file from a later one of the same name.
package struct ScratchFile: Sendable, Hashable {
    /// `st_dev`.
    package var device: UInt64
    /// `st_ino`.
    package var inode: UInt64
    package init(device: UInt64, inode: UInt64) {
        self.device = device
        self.inode = inode
    }
}

/// Figures of one disk of a job.
package struct JobDiskReport: Sendable {
    package var target: String
    package var sizeBytes: UInt64
    /// Scratch bytes that hold old content.
    package var scratchUsedBytes: UInt64
    /// Clusters kept, zero clusters included.
    package var preservedClusters: UInt64
    /// Of those, clusters that read as zeros and cost no scratch.
    package var zeroClusters: UInt64
    /// Bytes sent to backup clients.
    package var bytesRead: UInt64
    /// Bytes that one client has to read for the backup: of an incremental one the dirty bytes, of
    /// a full one what the source took on its file system at the begin, at most its size.
    package var bytesToRead: UInt64
    /// Bytes that scratch could take at the begin.
    package var scratchLimitBytes: UInt64 = 0
    /// Bytes that scratch can still take, as it was last seen; nil before anybody has looked.
    package var scratchFreeBytes: UInt64?
    package init(
        target: String, sizeBytes: UInt64, scratchUsedBytes: UInt64, preservedClusters: UInt64,
        zeroClusters: UInt64, bytesRead: UInt64, bytesToRead: UInt64
    ) {
        self.bytesToRead = bytesToRead
        self.target = target
        self.sizeBytes = sizeBytes
        self.scratchUsedBytes = scratchUsedBytes
        self.preservedClusters = preservedClusters
        self.zeroClusters = zeroClusters
        self.bytesRead = bytesRead
    }
}

/// A snapshot of a job's figures.
package struct JobReport: Sendable {
    package var disks: [JobDiskReport]
    package var clientCount: Int
    package var holdNanoseconds: UInt64
    /// Why the job broke (first reason), or nil while it is whole.
    package var brokenReason: String?
    package init(
        disks: [JobDiskReport], clientCount: Int, holdNanoseconds: UInt64, brokenReason: String?
    ) {
        self.disks = disks
        self.clientCount = clientCount
        self.holdNanoseconds = holdNanoseconds
        self.brokenReason = brokenReason
    }
}
