import ServerInterface

/// A domain and what has become of its disks.
struct ManagedDomain: Sendable {
    /// One disk's standing with the engine.
    enum Attachment: Sendable, Hashable {
        /// An empty drive: nothing to serve.
        case noMedia
        case attached(DiskID)
        /// The disk could not be opened; it is tried again on demand.
        case failed(reason: String)
    }

    var definition: DomainDefinition
    /// Whether the state directory keeps it.
    let isStored: Bool
    /// Bytes that one bit of a dirty bitmap covers.
    var granularityBytes: UInt32
    var checkpoints = CheckpointTree()
    /// Checkpoints that are not known but whose bitmaps stay: deleted with `--metadata`, or with a
    /// damaged file.
    var keptLayers: Set<String> = []
    /// Set when the checkpoints could not be listed: then no bitmap may be taken for a stray one.
    var keepsEveryLayer = false
    /// Disks that have gone to another server, or have come from one, by target.
    var moves: [String: StoredMove] = [:]
    /// Why it is not known which disks another server has; none is served then.
    var movesProblem: String?
    /// By target.
    var attachments: [String: Attachment] = [:]

    /// The domain as it is defined, with nothing attached yet.
    init(definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32) {
        self.definition = definition
        self.isStored = isStored
        self.granularityBytes = granularityBytes
    }

    /// The disk with this target or source path.
    func disk(_ name: String) -> DomainDisk? {
        definition.disks.first { $0.target == name } ?? definition.disks.first { $0.path == name }
    }

    /// Whether it is known that another server has the disk: what was recorded of it here is not
    /// used again, whichever way it comes back.
    func isAway(_ disk: DomainDisk) -> Bool {
        movesProblem == nil && moves[disk.target]?.phase == .away
    }

    /// Why a disk that could be opened is another server's; nil for one that is not.
    func reasonAway(_ disk: DomainDisk) -> String? {
        guard disk.isTrackable else { return nil }
        return movesProblem ?? moves[disk.target]?.reason
    }

    /// A line for each disk that is not served although it has media.
    var problems: [String] {
        definition.disks.compactMap { disk in
            guard case .failed(let reason) = attachments[disk.target] else { return nil }
            return "disk '\(disk.target)': \(reason)"
        }
    }
    var failedCount: Int {
        attachments.values.count { if case .failed = $0 { true } else { false } }
    }
}

extension DomainDefinition {
    /// How the engine is to open one disk; nil for an empty drive, and for one that cannot be
    /// served.
    func configuration(
        of disk: DomainDisk, tracking: TrackingConfiguration?
    ) -> DiskConfiguration? {
        guard disk.isServable, let path = disk.path else { return nil }
        var configuration = DiskConfiguration(
            exportName: liveExportName(target: disk.target), path: path, kind: disk.kind,
            readOnly: disk.readOnly, cacheMode: disk.cacheMode, discardMode: disk.discardMode,
            tracking: tracking)
        configuration.upstreamPatienceSeconds = disk.patienceSeconds
        configuration.image = disk.image
        return configuration
    }
}
