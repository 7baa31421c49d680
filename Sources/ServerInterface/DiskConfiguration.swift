import NBDProtocol

/// How a disk's source is stored.
package enum SourceKind: String, Sendable, Hashable, Codable {
    /// A regular file that holds the disk's bytes from offset zero.
    case file
    /// A block device.
    case block
    /// An export of another NBD server, named by a URI (`UpstreamAddress`).
    case network
}

/// Whether a live export uses the host's page cache.
package enum CacheMode: String, Sendable, Hashable, Codable {
    /// `cache='none'`: O_DIRECT, every write goes to the device itself.
    case none
    /// Writes go through the page cache; FLUSH and FUA make them durable.
    case buffered
}

/// What a guest's discard does to the source.
package enum DiscardMode: String, Sendable, Hashable, Codable {
    /// Discards punch holes (files) or reach the device (block devices).
    case unmap
    /// Discards are not offered to the guest.
    case ignore
}

/// Everything the server needs to open a disk and serve it as a live export.
package struct DiskConfiguration: Sendable, Hashable {
    /// Name of the live export, `DOMAIN/TARGET`.
    package var exportName: String
    /// Absolute path of the source, or an upstream's URI.
    package var path: String
    package var kind: SourceKind
    package var readOnly: Bool
    package var cacheMode: CacheMode
    package var discardMode: DiscardMode
    /// A text for people that clients are shown, or nil.
    package var description: String?
    /// Where changes are tracked; nil for no tracking (no checkpoints).
    package var tracking: TrackingConfiguration?
    /// The call waits for a storage that does not answer as long as it takes, instead of failing
    /// after a limit.
    package var waitsForStorage = false
    /// Requests wait so long for an upstream that has gone, in seconds; nil takes the server's.
    package var upstreamPatienceSeconds: Int?
    /// Present when the disk's bytes are found by an adapter; `path` and `kind` say where the image
    /// is, for people and to tell it from others.
    package var image: ImageConfiguration?
    /// Absolute path of a socket by which a guest may have the disk with vhost-user; nil: none.
    package var vhostSocket: String?

    /// Longest description that the protocol carries, in bytes.
    package static let descriptionBytesMax = ProtocolLimits.stringBytesMax

    package init(
        exportName: String, path: String, kind: SourceKind, readOnly: Bool,
        cacheMode: CacheMode, discardMode: DiscardMode, description: String? = nil,
        tracking: TrackingConfiguration? = nil
    ) {
        self.description = description
        self.tracking = tracking
        self.exportName = exportName
        self.path = path
        self.kind = kind
        self.readOnly = readOnly
        self.cacheMode = cacheMode
        self.discardMode = discardMode
    }
}

/// Names one attached disk for as long as the server runs; never reused.
package struct DiskID: Hashable, Sendable {
    package let number: UInt64
    package init(number: UInt64) { self.number = number }
}

/// A snapshot of an attached disk's figures.
package struct DiskStatus: Sendable {
    /// Size in bytes as exported.
    package var sizeBytes: UInt64
    /// Live connections right now.
    package var clientCount: Int
    /// Bytes changed since the newest checkpoint, in whole blocks; zero when changes are not
    /// tracked.
    package var dirtyBytes: UInt64
    /// Present when changes are tracked.
    package var tracking: TrackingStatus?
    /// What machines have requested; up to a tenth of a second old.
    package var figures = GuestFigures()
    /// Bytes of the different clusters that machines have changed within the last hour, about 3 %
    /// off; nil when it is not known.
    package var overwrittenBytes: UInt64?
    /// Writes to the source from before it was attached were lost, and nobody had been told: the
    /// error.
    package var earlierLoss: String?
    package init(
        sizeBytes: UInt64, clientCount: Int, dirtyBytes: UInt64, tracking: TrackingStatus? = nil
    ) {
        self.tracking = tracking
        self.sizeBytes = sizeBytes
        self.clientCount = clientCount
        self.dirtyBytes = dirtyBytes
    }
}
