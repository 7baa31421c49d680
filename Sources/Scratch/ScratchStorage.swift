package import Disk
package import IORing

/// Why scratch cannot be had.
package enum ScratchFault: Error, Sendable, Hashable {
    /// The file must not exist, and does.
    case exists
    /// The file cannot be created.
    case cannotCreate(SystemFault)
    /// An existing file or device cannot be used.
    case unusable(SourceFault)
    /// It does not hold a single cluster.
    case tooSmall(sizeBytes: UInt64)
}

/// The file or block device that keeps old content for one disk of one job.
///
/// Slots of one cluster each lie one behind the other from offset zero, so a file stays as small as
/// what was preserved and a device may be smaller than the disk.
package final class ScratchStorage: Sendable {
    package let path: String
    /// Slots that fit; no bound but the disk's size for a file.
    package let slotLimit: UInt32
    /// A plain read never waits for a device.
    package let readsNeverWait: Bool
    /// Bytes that can be filled as far as is known now, for the watermark.
    package let roomBytes: UInt64
    private let isOurs: Bool
    /// A slot is written once, and nobody else ever writes the file: pages of it may be shared.
    ///
    /// A file or device that was there before may serve another job while a peer still reads what
    /// this one sent.
    package var slotsNeverChange: Bool { isOurs }
    private let descriptor: OwnedDescriptor

    /// The descriptor's number, valid while this object lives.
    package var raw: Int32 { descriptor.raw }

    private init(
        path: String, descriptor: consuming OwnedDescriptor, isOurs: Bool, slotLimit: UInt32,
        roomBytes: UInt64
    ) {
        self.path = path
        self.slotLimit = slotLimit
        self.isOurs = isOurs
        self.roomBytes = roomBytes
        readsNeverWait = FileCalls.isMemoryBacked(descriptor.raw)
        self.descriptor = descriptor
    }

    /// Creates a new file, mode 0600, that `remove` deletes again.
    package static func create(
        path: String, geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        do throws(SystemFault) {
            let descriptor = try FileCalls.open(path, [.write, .createNew])
            return file(path, descriptor, isOurs: true, geometry)
        } catch {
            throw error.errno == Errno.exists ? .exists : .cannotCreate(error)
        }
    }

    /// Uses an existing file as it is; it is never deleted.
    ///
    /// Its content is meaningless afterwards.
    package static func reuse(
        path: String, geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor = try openExisting(path, .regular)
        return file(path, descriptor, isOurs: false, geometry)
    }

    /// Uses a block device, which may be smaller than the disk.
    package static func device(
        path: String, geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor = try openExisting(path, .blockDevice)
        let size: UInt64
        do throws(SystemFault) {
            size = try FileCalls.facts(descriptor.raw).sizeBytes
        } catch {
            throw .unusable(.system(error))
        }
        let slots = slots(min(size >> ClusterGeometry.shift, UInt64(geometry.clusterCount)))
        // A disk of no bytes needs none.
        guard slots > 0 || geometry.clusterCount == 0 else { throw .tooSmall(sizeBytes: size) }
        return ScratchStorage(
            path: path, descriptor: descriptor, isOurs: false, slotLimit: slots,
            roomBytes: UInt64(slots) << ClusterGeometry.shift)
    }

    /// Deletes the file if this object created it; the descriptor stays open until the last reader
    /// lets go.
    package func remove() {
        guard isOurs else { return }
        do throws(SystemFault) {
            try FileCalls.remove(path)
        } catch {
            // The directory may be gone already; the space is given back when the descriptor
            // closes.
            return
        }
    }

    private static func file(
        _ path: String, _ descriptor: consuming OwnedDescriptor, isOurs: Bool,
        _ geometry: ClusterGeometry
    ) -> ScratchStorage {
        let whole = UInt64(geometry.clusterCount) << ClusterGeometry.shift
        let room = min(FileCalls.freeBytes(descriptor.raw) ?? whole, whole)
        return ScratchStorage(
            path: path, descriptor: descriptor, isOurs: isOurs,
            slotLimit: slots(UInt64(geometry.clusterCount)), roomBytes: room)
    }

    /// As many slots as a ledger can name: 64 TiB of them.
    private static func slots(_ count: UInt64) -> UInt32 {
        UInt32(min(count, UInt64(LedgerView.slotsMax)))
    }

    private static func openExisting(
        _ path: String, _ type: FileType
    ) throws(ScratchFault) -> OwnedDescriptor {
        do throws(SourceFault) {
            let options: FileCalls.OpenOptions =
                type == .blockDevice ? [.write, .exclusiveDevice] : [.write]
            let descriptor = try RawSource.open(path, options)
            let found = try RawSource.facts(descriptor.raw).type
            guard found == type else { throw .wrongType(expected: type, found: found) }
            // Also keeps a disk's own source from being used as its scratch.
            try SourceLock.acquire(descriptor.raw, forWriting: true)
            return descriptor
        } catch {
            throw .unusable(error)
        }
    }
}
