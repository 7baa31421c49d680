import Disk
import NBDProtocol
import ServerInterface
import SharedMemory
import Synchronization
import SystemLayer

/// A disk as its machine uses it.
final class LiveExport: Sendable {
    let id = ExportID.next()
    let disk: DiskID
    let source: RawSource
    /// What a client is told that connects now: the size follows the source.
    var description: ExportDescription {
        var description = fixed
        description.sizeBytes = source.sizeBytes
        if isShared.load(ordering: .relaxed) { description.flags = Self.readOnlyFlags }
        return description
    }
    private let fixed: ExportDescription
    /// A guest has the disk by vhost-user and may write it: nobody else may meanwhile.
    let isShared = Atomic<Bool>(false)
    /// The disk is being detached: no front-end gets in.
    var isLeaving: Bool { leaving.load(ordering: .acquiring) }
    let leaving = Atomic<Bool>(false)
    private static let readOnlyFlags: TransmissionFlags = [
        .hasFlags, .sendFlush, .sendFUA, .sendCache, .canMultiConn, .readOnly,
    ]
    /// Guest discards reach the source.
    let discards: Bool
    /// The file system that the source takes its room from; nil for a device.
    let fileSystem: UInt64?
    /// The ring that owns the disk's writes, and with them all connections that may write.
    let homeRing: Int
    let clientCount = Atomic<Int>(0)
    /// For what its vhost-user front-ends leave behind.
    let closer = SlowCloser()
    /// On a thread of its own: to unmap waits for nobody, to close may wait for what a front-end
    /// has sent.
    let unmapper = SlowCloser()
    private let stay: SourcePlaces.Stay?
    let figures = PublishedFigures()
    let overwritten = OverwriteMeter()
    /// What was last found out for the disk's picture.
    let picture = DiskPicture()

    init(
        _ configuration: DiskConfiguration, disk: DiskID, source: RawSource, homeRing: Int,
        places: SourcePlaces? = nil
    ) {
        self.disk = disk
        self.source = source
        self.homeRing = homeRing
        fileSystem = source.type == .regular ? FileCalls.fileSystem(source.raw) : nil
        stay = places?.enter(source, fileSystem: fileSystem)
        discards =
            configuration.discardMode == .unmap && !source.isReadOnly
            && source.remote?.discards ?? true
        var flags = Self.readOnlyFlags
        if !source.isReadOnly {
            flags.remove(.readOnly)
            // All writers share one ring and one descriptor, so a flush on any connection covers
            // them all: MULTI_CONN holds.
            flags.insert(.sendWriteZeroes)
            if source.remote?.zeroesFast ?? true { flags.insert(.sendFastZero) }
            if discards { flags.insert(.sendTrim) }
        }
        fixed = ExportDescription(
            name: configuration.exportName, description: configuration.description,
            sizeBytes: source.sizeBytes, flags: flags, contexts: [MetaContext.allocation])
    }
}
