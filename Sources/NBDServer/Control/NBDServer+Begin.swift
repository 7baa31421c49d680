import BoundedCalls
import Disk
import NBDProtocol
import PointInTime
import ScratchFiles
package import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// Jobs begin.
///
/// What the caller named, scratch and a place to listen, is made first, each where it may hang
/// without hanging others. Then the call owns its disks: what it knows of their checkpoints is
/// still true, the instant is fixed, and the exports are served.
extension NBDServer {
    /// Validates everything, creates scratch, binds the listener, then fixes one instant for all
    /// disks and serves the exports.
    ///
    /// A fault leaves nothing behind: no file, no socket, no job. `beforeInstant` is asked between
    /// the two.
    package func beginJob(
        _ configuration: JobConfiguration, beforeInstant: @escaping @Sendable () async -> Bool
    ) async throws(ServerFault) -> JobStarted {
        let started = try await begin(configuration, beforeInstant).get()
        compressLater(configuration.checkpoint?.disks ?? [])
        return started
    }

    private func begin(
        _ configuration: JobConfiguration, _ beforeInstant: @Sendable () async -> Bool
    ) async -> Result<JobStarted, ServerFault> {
        if let fault = reserve(configuration) { return .failure(fault) }
        defer {
            state.withLock { _ = $0.beginning.removeValue(forKey: configuration.id) }
        }
        let disks = Set(configuration.disks.map(\.disk))
        let bases: [DiskID: SealedBits]
        switch await readBasesFirst(configuration) {
        case .failure(let fault): return .failure(fault)
        case .success(let found): bases = found
        }
        let scope = ExportScope(jobID: configuration.id, domain: configuration.domain)
        let (exports, opened): ([BackupExport], OpenedListener)
        switch await makePlaces(configuration, scope) {
        case .failure(let fault): return .failure(fault)
        case .success(let made): (exports, opened) = made
        }
        guard await beforeInstant() else {
            await discard(exports, opened, scope)
            return .failure(.givenUp)
        }
        let begun = await onDisks(disks) {
            self.shared.flight.during(.beginningJob, configuration.id) {
                self.begin(configuration, exports, bases, scope, opened)
            }
        }
        guard case .failure(let fault) = begun else {
            // What was written before the instant is to outlive an upstream that is started anew
            // while no server has it.
            for export in exports { export.source.remote?.beginFlush() }
            return begun
        }
        await discard(exports, opened, scope)
        return .failure(fault)
    }

    /// What was made for a job that does not begin.
    private func discard(
        _ exports: [BackupExport], _ opened: OpenedListener, _ scope: ExportScope
    ) async {
        scope.removeAll()
        await discard(opened)
        await removeScratch(Parting(exports))
    }

    /// Makes scratch and the listener at the same time: they do not depend on each other.
    ///
    /// On a fault nothing is left; scratch's is the one reported.
    private func makePlaces(
        _ configuration: JobConfiguration, _ scope: ExportScope
    ) async -> Result<([BackupExport], OpenedListener), ServerFault> {
        async let opening = open(
            configuration.endpoint, scope: scope, security: configuration.security)
        let made = await makeExports(configuration, scope)
        switch (made, await opening) {
        case (.success(let exports), .success(let opened)): return .success((exports, opened))
        case (.success(let exports), .failure(let fault)):
            // A bind that hangs keeps the scope, and is to keep no disk with it.
            scope.removeAll()
            await removeScratch(Parting(exports))
            return .failure(fault)
        case (.failure(let fault), .success(let opened)):
            scope.removeAll()
            await discard(opened)
            return .failure(fault)
        case (.failure(let fault), .failure):
            scope.removeAll()
            return .failure(fault)
        }
    }

    /// A listener that no ring has seen.
    private func discard(_ opened: OpenedListener) async {
        _ = await storage.run(
            at: opened.listener.place, what: "the socket",
            .end(milliseconds: Limits.closingMilliseconds)
        ) { () -> Result<Bool, ServerFault> in
            opened.listener.close()
            return .success(true)
        }
    }

    /// Takes the job's name, and its disks: none of them is detached while the job begins.
    private func reserve(_ configuration: JobConfiguration) -> ServerFault? {
        let id = configuration.id
        let disks = Set(configuration.disks.map(\.disk))
        guard disks.count == configuration.disks.count else {
            return .diskBusy(name: "the same disk twice in job \(id)")
        }
        return state.withLock { state in
            guard !state.isStopping else { return .shuttingDown }
            guard state.jobs[id] == nil, state.beginning[id] == nil, !state.ending.contains(id)
            else { return .exportNameTaken(name: id) }
            for disk in disks {
                guard let export = state.disks[disk] else { return .unknownDisk }
                guard !state.detaching.contains(disk) else {
                    return .diskBusy(name: export.description.name)
                }
            }
            state.beginning[id] = disks
            return nil
        }
    }

    // MARK: Bases

    /// What a disk's sealed layers say, and of what chain.
    struct SealedBits: Sendable {
        let chain: LayerChain
        /// By the checkpoints that the job's bitmaps have as bases.
        var bits: [String: DirtyBitmap] = [:]
    }

    /// Reads the sealed layers since every base checkpoint: found out before anything is made
    /// whether they are there and whole.
    private func readBasesFirst(
        _ configuration: JobConfiguration
    ) async -> Result<[DiskID: SealedBits], ServerFault> {
        let incremental = configuration.disks.filter { !$0.bitmaps.isEmpty }
        guard !incremental.isEmpty else { return .success([:]) }
        return await onDisks(Set(incremental.map(\.disk))) {
            var bases: [DiskID: SealedBits] = [:]
            for disk in incremental {
                if let fault = self.readBase(disk, &bases) { return .failure(fault) }
            }
            return .success(bases)
        }
    }

    /// Reads one disk's layers, unless what was read of the very same chain is there.
    private func readBase(
        _ disk: JobDiskConfiguration, _ bases: inout [DiskID: SealedBits]
    ) -> ServerFault? {
        guard let first = disk.bitmaps.first else { return nil }
        let found = store(disk.disk)
        guard case .success(let (_, store)) = found else {
            if case .failure(.notTracked(_, let detail)) = found {
                return .checkpointUnusable(
                    checkpoint: first.checkpoint, target: disk.target, detail: detail)
            }
            return .unknownDisk
        }
        let chain = store.record.chain
        if bases[disk.disk]?.chain == chain { return nil }
        var sealed = SealedBits(chain: chain)
        for base in disk.bitmaps where sealed.bits[base.checkpoint] == nil {
            do throws(TrackingFault) {
                sealed.bits[base.checkpoint] = try store.sealedUnion(since: base.checkpoint)
            } catch {
                return .checkpointUnusable(
                    checkpoint: base.checkpoint, target: disk.target, detail: Self.text(error))
            }
        }
        bases[disk.disk] = sealed
        return nil
    }

    // MARK: The instant, by a call that owns the disks

    private func begin(
        _ configuration: JobConfiguration, _ exports: [BackupExport],
        _ bases: [DiskID: SealedBits], _ scope: ExportScope, _ opened: OpenedListener
    ) -> Result<JobStarted, ServerFault> {
        guard !state.withLock({ $0.isStopping }) else { return .failure(.shuttingDown) }
        // A disk may have grown since its export was made; from here on it does not.
        for export in exports where export.geometry.sizeBytes != export.source.sizeBytes {
            return .failure(.diskBusy(name: export.target))
        }
        // Before the instant: from then on a machine may need the room.
        shared.watch.add(exports, shared)
        let begun = beginWatched(configuration, exports, bases, scope, opened)
        if case .failure = begun {
            shared.watch.remove(exports.map(\.id))
            // The watch may have checked scratch of disks that never had the job.
            for export in exports { export.writer.close() }
        }
        return begun
    }

    private func beginWatched(
        _ configuration: JobConfiguration, _ exports: [BackupExport],
        _ bases: [DiskID: SealedBits], _ scope: ExportScope, _ opened: OpenedListener
    ) -> Result<JobStarted, ServerFault> {
        var instant = Instant()
        instant.exports = exports
        if let fault = prepare(configuration, bases, &instant) {
            abandon(instant.swaps)
            return .failure(fault)
        }
        let call = DurableInstantCall(instant, checkpoint: configuration.checkpoint?.name, self)
        return call.run().map { publish(configuration.id, exports, scope, opened, $0) }
    }

    /// Everything that must be true at the instant; on a fault, `instant` holds the layers made.
    private func prepare(
        _ configuration: JobConfiguration, _ known: [DiskID: SealedBits],
        _ instant: inout Instant
    ) -> ServerFault? {
        // Others may have changed the chain since the layers were read.
        var bases = known
        for disk in configuration.disks {
            if let fault = readBase(disk, &bases) { return fault }
        }
        instant.sealedBits = bases.mapValues(\.bits)
        if let checkpoint = configuration.checkpoint,
            let fault = prepare(checkpoint, &instant)
        {
            return fault
        }
        let swapped = Set(instant.swaps.map(\.disk))
        for export in instant.exports
        where !export.bitmaps.isEmpty && !swapped.contains(export.disk) {
            instant.snapshots.append(
                RecordingSnapshot(disk: export.disk, homeRing: export.homeRing))
        }
        return nil
    }

    /// Gives every incremental export its bitmaps: the sealed layers since each one's base, and the
    /// bits that were recorded up to the instant.
    func freeze(_ instant: Instant) -> ServerFault? {
        for export in instant.exports where !export.bitmaps.isEmpty {
            let bits =
                instant.swaps.first { $0.disk == export.disk }?.old.snapshot()
                ?? instant.snapshots.first { $0.disk == export.disk }?.box.bitmap
            for dirty in export.bitmaps {
                guard var union = instant.sealedBits[export.disk]?[dirty.checkpoint], let bits,
                    union.blockCount == bits.blockCount
                else { return .unknownDisk }
                union.formUnion(bits)
                dirty.freeze(union)
            }
            export.keepBitmaps()
        }
        return nil
    }

    /// The job is there, and accepts clients.
    func publish(
        _ id: String, _ exports: [BackupExport], _ scope: ExportScope, _ opened: OpenedListener,
        _ hold: UInt64
    ) -> JobStarted {
        let job = RunningJob(
            id: id, exports: exports, scope: scope, listener: opened.listener,
            holdNanoseconds: hold)
        state.withLock { $0.jobs[id] = job }
        for export in exports {
            export.keepFigures()
            // From here on its ring hears when it goes.
            export.scratch.remote?.beginFlush()
        }
        keepRoom(exports)
        shared.acceptor(for: scope.duty).post(.addListener(opened.listener))
        let sizes = exports.map { ($0.target, $0.source.sizeBytes) }
        let files = exports.compactMap { export in
            export.scratch.file.map { (export.scratch.path, $0) }
        }
        var started = JobStarted(
            endpoint: opened.endpoint, holdNanoseconds: hold,
            diskSizes: Dictionary(sizes) { first, _ in first },
            scratchFiles: Dictionary(files) { first, _ in first }.mapValues {
                ScratchFile(device: $0.device, inode: $0.inode)
            })
        started.memory = exports.allSatisfy(\.isLasting) ? jobMemory : nil
        started.notLasting = started.memory == nil ? notLasting(exports) : nil
        return started
    }

    /// Why a job ends with this server; nil where that was never to be otherwise.
    private func notLasting(_ exports: [BackupExport]) -> String? {
        guard shared.configuration.servesJobs, shared.configuration.stateDirectory != nil else {
            return nil
        }
        if let text = exports.lazy.compactMap(\.boundToProcess).first { return text }
        guard let jobMemory else {
            return "there is no memory that outlives the server (/dev/shm is missing, or is none)"
        }
        let fault = exports.lazy.compactMap { $0.memory?.fault }.first
        return "'\(jobMemory)' could not be written"
            + (fault.map { ": \($0.call): \($0.errorText)" } ?? "")
    }
}
