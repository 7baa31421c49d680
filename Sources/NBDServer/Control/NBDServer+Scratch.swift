import BoundedCalls
import Disk
import NBDProtocol
import PointInTime
import ScratchFiles
package import ServerInterface
import Synchronization
import SystemLayer
import TrackingFiles

/// Scratch of jobs: made and removed where it may hang without hanging others.
extension NBDServer {
    /// Makes every export with its scratch, all at once; on a fault nothing is left.
    ///
    /// What is made later than its limit is removed when it comes.
    func makeExports(
        _ configuration: JobConfiguration, _ scope: ExportScope
    ) async -> Result<[BackupExport], ServerFault> {
        var lives: [LiveExport] = []
        for disk in configuration.disks {
            guard let live = state.withLock({ $0.disks[disk.disk] }) else {
                return .failure(.unknownDisk)
            }
            lives.append(live)
        }
        let opened = await openScratch(configuration, lives)
        var exports: [BackupExport] = []
        var fault: ServerFault?
        for (index, scratch) in opened.enumerated() {
            switch scratch {
            case .failure(let first): fault = fault ?? first
            case .success(let scratch):
                switch makeExport(configuration, index, lives[index], scratch, scope) {
                case .failure(let first):
                    fault = fault ?? first
                    await removeScratch(scratch.storage)
                case .success(let export): exports.append(export)
                }
            }
        }
        guard let fault else { return .success(exports) }
        await removeScratch(Parting(exports))
        return .failure(fault)
    }

    private func makeExport(
        _ configuration: JobConfiguration, _ index: Int, _ live: LiveExport,
        _ scratch: OpenedScratch, _ scope: ExportScope
    ) -> Result<BackupExport, ServerFault> {
        let disk = configuration.disks[index]
        var shift: UInt64 = 0
        if case .success(let (_, store)) = store(disk.disk) { shift = store.granularityShift }
        do throws(SystemFault) {
            let export = try BackupExport(
                disk, jobID: configuration.id, live: live, scratch: scratch.storage,
                home: shared.mailboxes[live.homeRing], reservedBytes: scratch.reservedBytes,
                allocatedBytes: scratch.allocatedBytes ?? .max, granularityShift: shift,
                copyTimeoutMilliseconds: configuration.copyTimeoutMilliseconds,
                mayRelease: configuration.clientRelease,
                memory: scratch.storage.remote == nil
                    ? jobMemory.map {
                        JobMemory(directory: $0, jobID: configuration.id, disk: index)
                    } : nil)
            shared.flight.name(export.id.number, "job \(configuration.id) \(export.target)")
            guard scope.add(.backup(export)) else {
                export.memory?.remove()
                return .failure(.exportNameTaken(name: disk.exportName))
            }
            return .success(export)
        } catch {
            return .failure(
                .systemUnsupported(
                    detail: "no memory for the ledger of '\(disk.target)': \(error.errorText)"))
        }
    }

    struct OpenedScratch: Sendable {
        let storage: ScratchStorage
        /// Room that it leaves on its file system.
        let reservedBytes: UInt64
        /// Bytes that the disk's source takes; nil for one that cannot tell.
        var allocatedBytes: UInt64?
    }

    /// Opens the scratch of all disks at once; in their order.
    private func openScratch(
        _ configuration: JobConfiguration, _ lives: [LiveExport]
    ) async -> [Result<OpenedScratch, ServerFault>] {
        let disks = configuration.disks
        return await withTaskGroup(of: (Int, Result<OpenedScratch, ServerFault>).self) { group in
            for (index, disk) in disks.enumerated() {
                let place = ScratchPlace(lives[index])
                let source = lives[index].source
                group.addTask {
                    var result = await self.openScratch(disk, of: configuration, place)
                    if case .success(var scratch) = result {
                        scratch.allocatedBytes = await self.allocatedBytes(source)
                        result = .success(scratch)
                    }
                    return (index, result)
                }
            }
            var opened = [Result<OpenedScratch, ServerFault>](
                repeating: .failure(.unknownDisk), count: disks.count)
            for await (index, result) in group { opened[index] = result }
            return opened
        }
    }

    private func openScratch(
        _ disk: JobDiskConfiguration, of job: JobConfiguration, _ place: ScratchPlace
    ) async -> Result<OpenedScratch, ServerFault> {
        await storage.run(
            at: .of(disk.scratch.path), what: "'\(disk.scratch.path)'",
            .begin(milliseconds: shared.configuration.storageMilliseconds),
            late: { $0.storage.remove() }
        ) {
            if disk.scratch.kind == .network {
                return self.openNetworkScratch(disk, of: job, place)
            }
            let storage: ScratchStorage
            do throws(ScratchFault) {
                storage = try self.openFreeStorage(disk.scratch, place.geometry)
            } catch {
                return .failure(Self.fault(disk, error))
            }
            let opened = self.reserve(storage)
            if case .failure = opened { storage.remove() }
            return opened
        }
    }

    /// A figure for people: a source that takes long to tell it holds up no begin.
    private func allocatedBytes(_ source: RawSource) async -> UInt64? {
        guard source.type == .regular else { return nil }
        let looked = await storage.run(
            at: .of(source.path), what: "'\(source.path)'",
            .begin(milliseconds: Limits.figureMilliseconds)
        ) { .success(FileCalls.allocatedBytes(source.raw)) }
        guard case .success(let bytes) = looked else { return nil }
        return bytes
    }

    /// Threads that read scratch.
    var readers: Int { shared.layout.rings(for: .backups).count }

    /// Room that scratch leaves on its file system: some where a machine's disk lies there, too.
    private func reserve(_ scratch: ScratchStorage) -> Result<OpenedScratch, ServerFault> {
        guard let fileSystem = scratch.fileSystem, let space = FileCalls.space(scratch.raw),
            let other = holdsDisk(fileSystem)
        else { return .success(OpenedScratch(storage: scratch, reservedBytes: 0)) }
        let kept = shared.configuration.scratchReserve.bytes(of: space.totalBytes)
        guard space.freeBytes > kept else {
            return .failure(
                .scratchUnusable(
                    path: scratch.path,
                    detail: "its file system also holds disk '\(other)': of its"
                        + " \(space.freeBytes) free bytes \(kept) are kept for machines"
                        + " (--scratch-reserve); put scratch elsewhere (<scratch>, --scratch-dir)"))
        }
        return .success(OpenedScratch(storage: scratch, reservedBytes: kept))
    }

    /// Keeps room on file systems to which a machine's disk has come since the job began.
    ///
    /// To be called after a disk and after a job have become known: the later of the two finds the
    /// other.
    func keepRoom(_ exports: [BackupExport]) {
        for export in exports where export.kept.bytes == 0 {
            guard let fileSystem = export.scratch.fileSystem, holdsDisk(fileSystem) != nil else {
                continue
            }
            let reserve = shared.configuration.scratchReserve
            export.writer.look { space in export.kept.set(reserve.bytes(of: space.totalBytes)) }
        }
    }

    package var machineRoom: MachineRoom {
        let fileSystems = state.withLock { state in
            state.disks.values.compactMap { $0.source.isReadOnly ? nil : $0.fileSystem }
        }
        return MachineRoom(
            fileSystems: Set(fileSystems), reserve: shared.configuration.scratchReserve)
    }

    package func holdRoom(_ holder: RoomHolder) { shared.watch.hold(holder) }

    package func dropRoom(ofJob id: String) { shared.watch.dropHolders(ofJob: id) }

    /// The name of a disk that takes its room from a file system and can take more.
    private func holdsDisk(_ fileSystem: UInt64) -> String? {
        state.withLock { state in
            state.disks.values.first {
                $0.fileSystem == fileSystem && !$0.source.isReadOnly
            }?.description.name
        }
    }

    /// Scratch of a job that ended a moment ago may still be held by its writer.
    private func openFreeStorage(
        _ scratch: ScratchConfiguration, _ geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        try InUse.outwait(
            nanoseconds: Limits.closedSourceNanoseconds, while: Self.isInUse
        ) { () throws(ScratchFault) in try openStorage(scratch, geometry) }
    }

    private func openStorage(
        _ scratch: ScratchConfiguration, _ geometry: ClusterGeometry
    ) throws(ScratchFault) -> ScratchStorage {
        let (path, reserved) = (scratch.path, shared.reserved)
        if let job = waitingJob(withScratch: path) {
            throw .unusable(.inUse(detail: Self.keepsContent(of: job), node: nil))
        }
        let opened: ScratchStorage
        switch (scratch.kind, scratch.reuseExternal) {
        case (.network, _):
            throw .unusable(.system(SystemFault(call: "open", errno: Errno.notSupported)))
        case (.file, false):
            // New, so nobody else's.
            return try .create(
                path: path, geometry: geometry, readers: readers, reserved: reserved)
        case (.block, _):
            opened = try .device(
                path: path, geometry: geometry, readers: readers, reserved: reserved)
        case (.file, true):
            opened = try .reuse(
                path: path, geometry: geometry, readers: readers, reserved: reserved)
        }
        if let job = waitingJob(withSource: opened.node) {
            throw .unusable(
                .inUse(
                    detail: "it is a disk of backup job \(job), which waits for its disks",
                    node: nil))
        }
        if let job = waitingJob(withScratch: opened.node) {
            throw .unusable(.inUse(detail: Self.keepsContent(of: job), node: nil))
        }
        return opened
    }

    static func keepsContent(of job: String) -> String {
        "it keeps old content for backup job \(job), which waits for its disks"
    }

    /// The job of a killed server that is to go on with what lies there; nobody holds it meanwhile.
    private func waitingJob(withScratch path: String) -> String? {
        state.withLock { state in
            state.expected.first { _, job in
                job.resumption.configuration.disks.contains { $0.scratch.path == path }
            }?.key
        }
    }

    private static func fault(_ disk: JobDiskConfiguration, _ fault: ScratchFault) -> ServerFault {
        switch fault {
        case .exists: .scratchExists(path: disk.scratch.path, target: disk.target)
        case .cannotCreate(let fault):
            .scratchNotCreated(path: disk.scratch.path, errorText: fault.errorText)
        case .unusable(let fault):
            .scratchUnusable(path: disk.scratch.path, detail: detail(of: fault))
        case .tooSmall(let size):
            .scratchUnusable(
                path: disk.scratch.path,
                detail: "its \(size) bytes do not hold one cluster of"
                    + " \(ClusterGeometry.clusterBytes) bytes")
        }
    }

    // MARK: Removing

    /// Removes the scratch of exports, each storage by itself, and waits for a moment: what takes
    /// longer is done later.
    ///
    /// The last reference goes there, so that no ring and no caller frees a large file.
    func removeScratch(_ exports: Parting<[BackupExport]>) async {
        let each = (exports.take() ?? []).map { Parting<BackupExport>($0) }
        for parting in each { parting.look { $0.memory?.remove() } }
        let tasks = each.compactMap { parting in
            parting.look { $0.scratch.path }.map { path in
                Task { await self.remove(path) { parting.take()?.scratch.remove() } }
            }
        }
        _ = await Patience.wait(for: tasks, milliseconds: Limits.removalMilliseconds)
    }

    private func removeScratch(_ scratch: ScratchStorage) async {
        await remove(scratch.path) { scratch.remove() }
    }

    private func remove(_ path: String, _ body: @escaping @Sendable () -> Void) async {
        _ = await storage.run(
            at: .of(path), what: "'\(path)'", .end(milliseconds: Limits.removalMilliseconds)
        ) { () -> Result<Bool, ServerFault> in
            body()
            return .success(true)
        }
    }
}
