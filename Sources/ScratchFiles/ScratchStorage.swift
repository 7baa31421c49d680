package import Disk
package import PointInTime
package import SystemLayer

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

/// What is known of scratch without opening it.
package struct ScratchFacts: Sendable {
    package var path: String
    /// What it is called where it is read and written.
    package var raw: Int32
    package var slotLimit: UInt32
    package var isOurs = true
    package var freeBytes = UInt64.max
    package var fileSystem: UInt64?
    package var node: FileNode?
    package var readsNeverWait = false
    package var isFar = false
    /// What `ScratchStorage.deviceBytes` is.
    package var deviceBytes: UInt64 = 0
    /// What is behind it when it is no file of this host.
    package var remote: (any RemoteSource)?
    /// Told of write errors: one for each reader, and one for everybody else.
    package var readers: [WriteErrorWitness]
    package var witness: WriteErrorWitness

    package init(
        path: String, raw: Int32, slotLimit: UInt32, readers: [WriteErrorWitness],
        witness: WriteErrorWitness
    ) {
        self.path = path
        self.raw = raw
        self.slotLimit = slotLimit
        self.readers = readers
        self.witness = witness
    }
}

/// The file, block device or upstream that keeps old content for one disk of one job.
///
/// Slots of one cluster each lie one behind the other from offset zero, so a file stays as small as
/// what was preserved and a device may be smaller than the disk.
package final class ScratchStorage: Sendable {
    package let path: String
    /// Slots that fit; no bound but the disk's size for a file.
    package let slotLimit: UInt32
    /// A plain read never waits for a device.
    package let readsNeverWait: Bool
    /// What `RawSource.isFar` is.
    package let isFar: Bool
    /// Bytes that its file system or device had free when it was opened.
    private let freeBytes: UInt64
    /// Bytes that all of the disk's clusters take.
    private let wholeBytes: UInt64
    /// Whether the file is made and deleted by us.
    package let isOurs: Bool
    /// The file system that gives the room; nil for a device.
    package let fileSystem: UInt64?
    /// What tells a file made by us from another that later has its name; nil for what was there
    /// before.
    package let file: (device: UInt64, inode: UInt64)?
    /// The file or device, by whatever name it was opened.
    package let node: FileNode?
    /// Bytes of a device; 0 for a file.
    package let deviceBytes: UInt64
    /// What is behind it when it is no file of this host; let go of with this object.
    package let remote: (any RemoteSource)?
    /// The errno of a write error from before it was opened that nobody had been told of, or nil.
    package let earlierError: Int32?
    /// Told of write errors, one for each reader.
    private let witnesses: [WriteErrorWitness]
    /// The same for everybody who is not a reader.
    private let witness: WriteErrorWitness
    /// A slot is written once, and nobody else ever writes the file: pages of it may be shared.
    ///
    /// A file or device that was there before may serve another job while a peer still reads what
    /// this one sent.
    package var slotsNeverChange: Bool { isOurs }
    private let descriptor: OwnedDescriptor?

    /// The descriptor's number, valid while this object lives.
    package let raw: Int32

    private init(
        path: String, descriptor: consuming OwnedDescriptor, isOurs: Bool, slotLimit: UInt32,
        freeBytes: UInt64, wholeBytes: UInt64, fileSystem: UInt64?, readers: Int
    ) throws(SystemFault) {
        self.path = path
        self.slotLimit = slotLimit
        self.isOurs = isOurs
        self.freeBytes = freeBytes
        self.wholeBytes = wholeBytes
        self.fileSystem = fileSystem
        let inode = isOurs ? try FileCalls.identity(descriptor.raw).inode : nil
        file = FileCalls.device(descriptor.raw).flatMap { device in inode.map { (device, $0) } }
        node = FileCalls.node(descriptor.raw)
        readsNeverWait = FileCalls.isMemoryBacked(descriptor.raw)
        isFar = FileCalls.isFar(descriptor.raw)
        // To note an access a read may wait for the file system.
        FileCalls.leaveAccessTime(descriptor.raw)
        let facts = try FileCalls.facts(descriptor.raw)
        deviceBytes = facts.type == .blockDevice ? facts.sizeBytes : 0
        // An error from the file's earlier use does not count against a new job.
        earlierError = FileCalls.writeError(descriptor.raw)
        var witnesses: [WriteErrorWitness] = []
        // What lies in memory is never written back.
        for _ in 0..<(readsNeverWait ? 0 : readers) {
            witnesses.append(try WriteErrorWitness(of: descriptor.raw))
        }
        self.witnesses = witnesses
        witness = try WriteErrorWitness(of: descriptor.raw)
        raw = descriptor.raw
        remote = nil
        self.descriptor = consume descriptor
    }

    deinit { remote?.release() }

    /// Scratch of which no descriptor is open, known by its facts; what is asked of it here is
    /// asked of a simulated world elsewhere.
    package init(_ facts: ScratchFacts) {
        path = facts.path
        raw = facts.raw
        descriptor = nil
        slotLimit = facts.slotLimit
        isOurs = facts.isOurs
        freeBytes = facts.freeBytes
        wholeBytes = UInt64(facts.slotLimit) << ClusterGeometry.shift
        fileSystem = facts.fileSystem
        file = nil
        node = facts.node
        deviceBytes = facts.deviceBytes
        remote = facts.remote
        earlierError = nil
        readsNeverWait = facts.readsNeverWait
        isFar = facts.isFar
        witnesses = facts.readers
        witness = facts.witness
    }

    /// Bytes that could be filled when it was opened, for the watermark, `reservedBytes` being left
    /// free.
    package func roomBytes(leaving reservedBytes: UInt64) -> UInt64 {
        min(freeBytes - min(reservedBytes, freeBytes), wholeBytes)
    }

    /// The descriptor by which a reader is told of write errors, or nil where there can be none.
    ///
    /// Bytes that were read are those that were written only if the reader is told of none *after*
    /// the read: a page that could not be written back leaves the cache, and then something else is
    /// read in its place without an error.
    package func witness(of reader: Int) -> Int32? {
        witnesses.isEmpty ? nil : witnesses[reader].raw
    }

    /// The errno of a write error of this scratch, or nil; for threads that may take a lock.
    package func writeError() -> Int32? {
        let found = witness.errors()
        return found.count > 0 ? found.errno : nil
    }

    /// Gives the room back of a file that this object created, while it is still open.
    ///
    /// Only when nobody may read it any more; may wait for the file system.
    package func empty() {
        guard isOurs, descriptor != nil else { return }
        do throws(SystemFault) {
            try FileCalls.setSize(raw, bytes: 0)
        } catch {
            // The room is given back when the file is deleted and closed.
            return
        }
    }

    /// Creates a new file, mode 0600, that `remove` deletes again.
    ///
    /// `readers`: so many threads read it, each with its own witness.
    package static func create(
        path: String, geometry: ClusterGeometry, readers: Int = 1,
        reserved: ReservedPaths = ReservedPaths()
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor: OwnedDescriptor
        do throws(SystemFault) {
            descriptor = try FileCalls.open(path, [.write, .createNew])
        } catch {
            throw error.errno == Errno.exists ? .exists : .cannotCreate(error)
        }
        do throws(SourceFault) {
            try reserved.check(descriptor.raw)
            try hold(descriptor.raw)
        } catch {
            try? FileCalls.remove(path)
            throw .unusable(error)
        }
        do throws(SystemFault) {
            return try file(path, descriptor, isOurs: true, geometry, readers)
        } catch {
            try? FileCalls.remove(path)
            throw .cannotCreate(error)
        }
    }

    /// Opens the file that an earlier process has created, which `remove` deletes.
    package static func reopen(
        path: String, geometry: ClusterGeometry, readers: Int = 1,
        reserved: ReservedPaths = ReservedPaths()
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor = try openLeft(path, reserved)
        do throws(SystemFault) {
            return try file(path, descriptor, isOurs: true, geometry, readers)
        } catch {
            throw .unusable(.system(error))
        }
    }

    private static func openLeft(
        _ path: String, _ reserved: ReservedPaths
    ) throws(ScratchFault) -> OwnedDescriptor {
        do throws(SourceFault) {
            let descriptor = try RawSource.open(path, [.write])
            let found = try RawSource.facts(descriptor.raw).type
            guard found == .regular else { throw .wrongType(expected: .regular, found: found) }
            try reserved.check(descriptor.raw)
            try hold(descriptor.raw)
            return descriptor
        } catch {
            throw .unusable(error)
        }
    }

    /// Uses an existing file as it is; it is never deleted.
    ///
    /// Its content is meaningless afterwards.
    package static func reuse(
        path: String, geometry: ClusterGeometry, readers: Int = 1,
        reserved: ReservedPaths = ReservedPaths()
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor = try openExisting(path, .regular, reserved)
        do throws(SystemFault) {
            return try file(path, descriptor, isOurs: false, geometry, readers)
        } catch {
            throw .unusable(.system(error))
        }
    }

    /// Uses a block device, which may be smaller than the disk.
    package static func device(
        path: String, geometry: ClusterGeometry, readers: Int = 1,
        reserved: ReservedPaths = ReservedPaths()
    ) throws(ScratchFault) -> ScratchStorage {
        let descriptor = try openExisting(path, .blockDevice, reserved)
        let size: UInt64
        do throws(SystemFault) {
            size = try FileCalls.facts(descriptor.raw).sizeBytes
        } catch {
            throw .unusable(.system(error))
        }
        let slots = slots(min(size >> ClusterGeometry.shift, UInt64(geometry.clusterCount)))
        // A disk of no bytes needs none.
        guard slots > 0 || geometry.clusterCount == 0 else { throw .tooSmall(sizeBytes: size) }
        do throws(SystemFault) {
            return try ScratchStorage(
                path: path, descriptor: descriptor, isOurs: false, slotLimit: slots,
                freeBytes: size, wholeBytes: UInt64(slots) << ClusterGeometry.shift,
                fileSystem: nil, readers: readers)
        } catch {
            throw .unusable(.system(error))
        }
    }

    /// Deletes the file if this object created it; the descriptor stays open until the last reader
    /// lets go.
    ///
    /// What is no file of this host is let go of, and stays as it is. That may wait, so that the
    /// last reader, a ring perhaps, does not have to.
    package func remove() {
        if let remote { _ = remote.close(milliseconds: Self.closingMilliseconds) }
        guard isOurs, descriptor != nil else { return }
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
        _ geometry: ClusterGeometry, _ readers: Int
    ) throws(SystemFault) -> ScratchStorage {
        let whole = UInt64(geometry.clusterCount) << ClusterGeometry.shift
        let free = FileCalls.space(descriptor.raw)?.freeBytes ?? .max
        let fileSystem = FileCalls.fileSystem(descriptor.raw)
        return try ScratchStorage(
            path: path, descriptor: descriptor, isOurs: isOurs,
            slotLimit: slots(UInt64(geometry.clusterCount)), freeBytes: free,
            wholeBytes: whole, fileSystem: fileSystem, readers: readers)
    }

    /// A program that has the scratch open may take so long to end, in milliseconds.
    private static let closingMilliseconds: Int32 = 12_000

    /// As many slots as a ledger can name: 64 TiB of them.
    private static func slots(_ count: UInt64) -> UInt32 {
        UInt32(min(count, UInt64(LedgerView.slotsMax)))
    }

    /// Keeps a file that was just made from being served as a disk while a job has it.
    ///
    /// Where the file system has no locks there is none to be seen either.
    private static func hold(_ descriptor: Int32) throws(SourceFault) {
        do throws(SourceFault) {
            try SourceLock.acquire(descriptor, forWriting: true)
        } catch {
            if case .system = error { return }
            throw error
        }
    }

    private static func openExisting(
        _ path: String, _ type: FileType, _ reserved: ReservedPaths
    ) throws(ScratchFault) -> OwnedDescriptor {
        do throws(SourceFault) {
            let options: FileCalls.OpenOptions =
                type == .blockDevice ? [.write, .exclusiveDevice] : [.write]
            let descriptor = try RawSource.open(path, options)
            let found = try RawSource.facts(descriptor.raw).type
            guard found == type else { throw .wrongType(expected: type, found: found) }
            try reserved.check(descriptor.raw)
            // Also keeps a disk's own source from being used as its scratch.
            try SourceLock.acquire(descriptor.raw, forWriting: true)
            return descriptor
        } catch {
            throw .unusable(error)
        }
    }
}
