import BoundedCalls
import Disk
import NBDProtocol
package import ServerInterface
import Synchronization
import SystemLayer

/// Changes of a disk that is served: it goes while nobody uses it, or becomes larger.
extension NBDServer {
    /// Detaches a disk unless somebody is connected to its live export.
    ///
    /// Nobody is dropped: a client that connects at the same time is counted, or finds no export.
    package func detachDiskIfUnused(_ disk: DiskID) async throws(ServerFault) {
        _ = try await detach(disk, .ordinary, onlyUnused: true).get()
    }

    /// Makes a disk larger while it is served; returns its size in bytes.
    ///
    /// A regular file is extended; a device must have grown already. Without `sizeBytes` the disk
    /// gets the size that its source has by now. Connections that are there go on with the size
    /// they were told, new ones are told the new size. What is new counts as changed.
    ///
    /// On a fault the disk has its old size, unless the fault says that it has grown. The file has
    /// its old length; where the storage does not answer, it may become longer later and is
    /// shortened again if it can be. Until then the disk cannot be resized.
    package func growDisk(
        _ disk: DiskID, sizeBytes: UInt64?
    ) async throws(ServerFault) -> UInt64 {
        guard let export = state.withLock({ $0.disks[disk] }) else { throw .unknownDisk }
        let source = export.source
        let turn = try takeTurn(disk, export.description.name)
        let measured = try await onSource(source, turn) { Self.measure(source) }.get()
        let plan = try plan(disk, export, sizeBytes, measured)
        guard let plan else { return source.sizeBytes }
        var added: RawSource.Extension?
        if plan.isExtended {
            added = try await onSource(
                source, turn, late: { try? source.takeBack($0) },
                { Self.extend(source, to: plan.sizeBytes, export.description.name) }
            ).get()
        }
        let enlarged = await onDisks([disk]) { () -> Result<Bool, ServerFault> in
            if let fault = self.enlarge(disk, export, to: plan.sizeBytes) {
                return .failure(fault)
            }
            return .success(true)
        }
        if case .failure(let fault) = enlarged {
            guard let added else { throw fault }
            throw await takeBack(added, source, turn, after: fault)
        }
        if plan.isExtended { try await makeDurable(source) }
        return plan.sizeBytes
    }

    // MARK: Growing

    private struct GrowthPlan: Sendable {
        let sizeBytes: UInt64
        /// The source's file is shorter than that.
        let isExtended: Bool
    }

    private static func measure(_ source: RawSource) -> Result<UInt64, ServerFault> {
        do throws(SourceFault) {
            return .success(try source.measure())
        } catch {
            return .failure(fault(source.path, error))
        }
    }

    private static func extend(
        _ source: RawSource, to sizeBytes: UInt64, _ name: String
    ) -> Result<RawSource.Extension, ServerFault> {
        do throws(SystemFault) {
            if let added = try source.extend(to: sizeBytes) { return .success(added) }
            return .failure(
                .resizeRefused(
                    name: name,
                    detail: "its source has grown meanwhile: take all of it (--capacity)"))
        } catch {
            return .failure(fault(source.path, .system(error)))
        }
    }

    /// Refused while a call on the source's length is at work, even if nobody waits for it any
    /// more.
    private func takeTurn(_ disk: DiskID, _ name: String) throws(ServerFault) -> GrowthTurn {
        let isFree = state.withLock { $0.growing.insert(disk).inserted }
        guard isFree else {
            throw .resizeRefused(
                name: name,
                detail: "another resize of it is at work, or waits for its storage to answer")
        }
        return GrowthTurn { self.state.withLock { _ = $0.growing.remove(disk) } }
    }

    /// Runs a call on the source; the turn is not over before it has ended.
    private func onSource<Value: Sendable>(
        _ source: RawSource, _ turn: GrowthTurn,
        late: @escaping @Sendable (Value) -> Void = { _ in },
        _ body: @escaping @Sendable () -> Result<Value, ServerFault>
    ) async -> Result<Value, ServerFault> {
        await storage.run(
            at: .of(source.path), what: "'\(source.path)'",
            .begin(milliseconds: shared.configuration.storageMilliseconds),
            late: { value in
                withExtendedLifetime(turn) { late(value) }
            }, { withExtendedLifetime(turn) { body() } })
    }

    /// What there is to do; nil when the disk has the size already.
    private func plan(
        _ disk: DiskID, _ export: LiveExport, _ wanted: UInt64?, _ found: UInt64
    ) throws(ServerFault) -> GrowthPlan? {
        let name = export.description.name
        if isInJob(disk) {
            throw .resizeRefused(name: name, detail: "a backup job runs on it, end that first")
        }
        let sizeBytes = wanted ?? found
        let source = export.source
        guard sizeBytes != source.sizeBytes else { return nil }
        if let detail = refusal(of: sizeBytes, found: found, source) {
            throw .resizeRefused(name: name, detail: detail)
        }
        return GrowthPlan(sizeBytes: sizeBytes, isExtended: sizeBytes > found)
    }

    private func isInJob(_ disk: DiskID) -> Bool {
        state.withLock { state in
            state.jobs.values.contains { $0.exports.contains { $0.disk == disk } }
                || state.beginning.values.contains { $0.contains(disk) }
        }
    }

    /// Why a disk cannot get this size, or nil when it can.
    private func refusal(
        of sizeBytes: UInt64, found: UInt64, _ source: RawSource
    ) -> String? {
        if sizeBytes < source.sizeBytes {
            return "it has \(source.sizeBytes) bytes and cannot shrink to \(sizeBytes)"
        }
        if sizeBytes < found {
            return "its source has \(found) bytes already: take them all (--capacity)"
        }
        if sizeBytes > found, source.remote != nil {
            return
                "its upstream had \(found) bytes when it was attached: grow the upstream, then detach"
                + " the disk and attach it again"
        }
        if sizeBytes > found, source.type != .regular {
            return "its device has \(found) bytes: grow the device to \(sizeBytes) first"
        }
        if sizeBytes > found, source.isReadOnly {
            return "it is read-only, and its file has \(found) bytes"
        }
        guard sizeBytes % UInt64(source.alignment) == 0 else {
            return "\(sizeBytes) bytes are not a multiple of \(source.alignment), which "
                + "cache='none' needs"
        }
        guard source.alignment == 1 || !source.hasTail else {
            return "its \(source.sizeBytes) bytes are no multiple of \(source.alignment): with "
                + "cache='none' detach it and attach it again"
        }
        let most = RawSource.sizeBytesMax
        return sizeBytes > most ? "\(most) bytes are the most that can be served" : nil
    }

    /// The disk stays as it was: so does its file, where nobody has seen what was added.
    private func takeBack(
        _ added: RawSource.Extension, _ source: RawSource, _ turn: GrowthTurn,
        after fault: ServerFault
    ) async -> ServerFault {
        let back = await storage.run(
            at: .of(source.path), what: "'\(source.path)'",
            .end(milliseconds: shared.configuration.storageMilliseconds)
        ) { () -> Result<Bool, ServerFault> in
            withExtendedLifetime(turn) {
                do throws(SystemFault) {
                    try source.takeBack(added)
                    return .success(true)
                } catch {
                    return .failure(Self.fault(source.path, .system(error)))
                }
            }
        }
        guard case .failure = back else { return fault }
        return .sourceUnusable(
            path: source.path,
            detail: "it was extended to \(added.to) bytes, the disk could not be resized, and the"
                + " file has not been shortened to \(added.from) bytes again")
    }

    // MARK: By a call that owns the disk

    private func enlarge(
        _ disk: DiskID, _ export: LiveExport, to sizeBytes: UInt64
    ) -> ServerFault? {
        if isInJob(disk) {
            return .resizeRefused(
                name: export.description.name, detail: "a backup job has begun on it")
        }
        let enlarged = EnlargeCall(disk, export, to: sizeBytes, self).run()
        if case .failure(let fault) = enlarged { return fault }
        return nil
    }

    /// Waits, where nobody else does, until a file's new length is durable.
    private func makeDurable(_ source: RawSource) async throws(ServerFault) {
        let synced = await storage.run(
            at: .of(source.path), what: "the sync of '\(source.path)'",
            .begin(milliseconds: shared.configuration.storageMilliseconds)
        ) { () -> Result<Bool, ServerFault> in
            do throws(SystemFault) {
                // By a descriptor of its own: what the guest's has to be told stays there.
                try source.makeDurable()
                return .success(true)
            } catch {
                return .failure(Self.fault(source.path, .system(error)))
            }
        }
        guard case .failure = synced else { return }
        throw .sourceUnusable(
            path: source.path,
            detail: "the disk has grown, but its new length may not be durable")
    }
}

/// A disk is being resized as long as anybody holds this: the call itself, and what hangs of it.
private final class GrowthTurn: Sendable {
    private let end: @Sendable () -> Void
    init(end: @escaping @Sendable () -> Void) { self.end = end }
    deinit { end() }
}
