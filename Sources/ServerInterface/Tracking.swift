/// How one disk's changes are tracked.
package struct TrackingConfiguration: Sendable, Hashable {
    /// A directory of this disk alone; made (0700) when missing.
    package var directory: String
    /// Bytes for each bit: a power of two, 4 KiB to 2 MiB.
    ///
    /// Applies to a disk that has no checkpoint yet; an existing chain keeps its own.
    package var granularityBytes: UInt32

    package init(directory: String, granularityBytes: UInt32 = 65_536) {
        self.directory = directory
        self.granularityBytes = granularityBytes
    }
}

/// The state of a disk's change tracking.
package struct TrackingStatus: Sendable, Hashable {
    package var granularityBytes: UInt32
    /// Checkpoints that an incremental backup can start from, oldest first.
    package var checkpoints: [String]
    /// Bytes dirty since the newest checkpoint (or since tracking began), in whole blocks.
    package var dirtyBytes: UInt64
    /// Bytes that were added to be safe after an unclean stop; zero after a clean one.
    package var recoveredBytes: UInt64
    /// Why older checkpoints of this disk are gone (damaged file, other source, shrunk disk), or
    /// nil.
    package var problem: String?

    package init(
        granularityBytes: UInt32, checkpoints: [String], dirtyBytes: UInt64,
        recoveredBytes: UInt64, problem: String?
    ) {
        self.granularityBytes = granularityBytes
        self.checkpoints = checkpoints
        self.dirtyBytes = dirtyBytes
        self.recoveredBytes = recoveredBytes
        self.problem = problem
    }
}

/// A checkpoint of several disks, all at one instant.
package struct CheckpointConfiguration: Sendable, Hashable {
    package var name: String
    package var disks: [DiskID]

    package init(name: String, disks: [DiskID]) {
        self.name = name
        self.disks = disks
    }
}

/// The bitmap that a disk of an incremental job serves besides its data.
package struct IncrementalConfiguration: Sendable, Hashable {
    /// Everything written since this checkpoint is dirty.
    package var checkpoint: String
    /// Name of the bitmap: the meta context is `qemu:dirty-bitmap:` and this.
    package var bitmap: String

    package init(checkpoint: String, bitmap: String) {
        self.checkpoint = checkpoint
        self.bitmap = bitmap
    }
}

/// Neighbouring dirty bytes.
package struct DirtyExtent: Sendable, Hashable, Codable {
    package var offset: UInt64
    package var length: UInt64

    package init(offset: UInt64, length: UInt64) {
        self.offset = offset
        self.length = length
    }
}

/// Everything written to a disk since a checkpoint.
package struct DirtyReport: Sendable, Hashable {
    package var dirtyBytes: UInt64
    /// In order, merged; at most `extentLimit` of the call.
    package var extents: [DirtyExtent]

    package init(dirtyBytes: UInt64, extents: [DirtyExtent]) {
        self.dirtyBytes = dirtyBytes
        self.extents = extents
    }
}
