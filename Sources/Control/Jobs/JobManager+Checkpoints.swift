import Foundation
import ServerInterface

extension JobManager {
    /// Creates a checkpoint from libvirt's `<domaincheckpoint>`; all its disks at one instant.
    ///
    /// With `redefine` only what is known of a checkpoint made before is taken up; its disks are
    /// not asked.
    ///
    /// The steps are: kept as pending, made by the engine, kept as committed. A crash between them
    /// is undone at the next start; a refusal leaves nothing behind.
    @discardableResult
    package func createCheckpoint(
        domain name: String, xml: String, redefine: Bool = false, validates: Bool = false,
        quiesces: Bool = false
    ) async throws(ControlError) -> CheckpointView {
        try checkTakesChanges()
        let request = try CheckpointRequest.parse(xml)
        _ = try domain(name)
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        guard !isStopping else { throw .serverStopping }
        if redefine {
            return try await redefineCheckpoint(request, domain: name, validates: validates)
        }
        await retryFailedDisks(of: name)
        let domain = try domain(name)
        let planned = try CheckpointPlan.create(
            request, domain: domain.definition, tree: domain.checkpoints, now: Self.now)
        let configuration = try engineCheckpoint(planned, in: domain)
        try await prepare(planned, domain: name)
        let owner = UUID().uuidString
        do throws(ControlError) {
            try await createInEngine(configuration, quiesces, domain.definition, owner)
        } catch {
            do throws(ControlError) {
                try state?.removeCheckpoint(planned.name, of: domain.definition.uuid)
            } catch {
                // The next start finds it pending and takes it back.
                noteStateProblem(error.message, domain: name)
            }
            throw error
        }
        do throws(ControlError) {
            guard await thaw(quiesces, for: owner) else { throw .thawedTooEarly(name) }
            try commit(planned, domain: name)
        } catch {
            await takeBack(planned, domain: name)
            throw error
        }
        return try await checkpoint(planned.name, of: name)
    }

    // Guests stand still for this and nothing else; the caller thaws them when it has gone well.
    private func createInEngine(
        _ configuration: CheckpointConfiguration, _ quiesces: Bool, _ definition: DomainDefinition,
        _ owner: String
    ) async throws(ControlError) {
        try await freeze(quiesces, definition, for: owner)
        do throws(ServerFault) {
            if !configuration.disks.isEmpty { try await engine.createCheckpoint(configuration) }
        } catch {
            _ = await thaw(quiesces, for: owner)
            throw controlError(from: error)
        }
    }

    private func redefineCheckpoint(
        _ request: CheckpointRequest, domain name: String, validates: Bool
    ) async throws(ControlError) -> CheckpointView {
        let domain = try domain(name)
        var metadata = try CheckpointPlan.redefine(
            request, domain: domain.definition, tree: domain.checkpoints)
        if await isBeingTakenBack(metadata.name, of: name) {
            throw .checkpointBeingTakenBack(metadata.name)
        }
        // Forgotten is not forgiven: the job that it was made with still decides what it is worth.
        let kept = state?.checkpoints(of: domain.definition.uuid).records ?? []
        metadata.jobID =
            metadata.jobID ?? kept.first { $0.name == metadata.name }?.jobID
        if validates { try await validate(metadata, of: domain) }
        var tree = domain.checkpoints
        try tree.redefine(metadata)
        try state?.save(metadata, of: domain.definition.uuid)
        domains[name]?.checkpoints = tree
        domains[name]?.keptLayers.remove(metadata.name)
        return try await checkpoint(metadata.name, of: name)
    }

    // Every disk that is there and takes part must hold the bitmap.
    private func validate(
        _ metadata: CheckpointMetadata, of domain: ManagedDomain
    ) async throws(ControlError) {
        for disk in metadata.disks where disk.bitmap != nil {
            guard domain.definition.disks.contains(where: { $0.target == disk.target }) else {
                continue
            }
            guard case .attached(let id) = domain.attachments[disk.target],
                let tracking = try? await engine.diskStatus(id).tracking,
                tracking.checkpoints.contains(metadata.name)
            else { throw .checkpointUnusable(metadata.name, disk: disk.target) }
        }
    }

    /// Seconds since 1970.
    static var now: UInt64 { UInt64(max(Date().timeIntervalSince1970, 0)) }

    /// What the engine is asked for; a disk that is not served now is a refusal.
    func engineCheckpoint(
        _ planned: CheckpointMetadata, in domain: ManagedDomain
    ) throws(ControlError) -> CheckpointConfiguration {
        var disks: [DiskID] = []
        try checkNotComing(planned, in: domain)
        for disk in planned.disks where disk.bitmap != nil {
            switch domain.attachments[disk.target] {
            case .attached(let id): disks.append(id)
            case .failed(let reason):
                throw .diskUnavailable(
                    domain: domain.definition.name, target: disk.target, reason: reason)
            case .noMedia, nil: throw .diskEmptyOrReadOnly(disk.target)
            }
        }
        return CheckpointConfiguration(name: planned.name, disks: disks)
    }

    /// Makes ready for the engine's part: bitmaps of that name that nobody knows go, and the
    /// checkpoint is kept as pending.
    func prepare(_ planned: CheckpointMetadata, domain name: String) async throws(ControlError) {
        let domain = try domain(name)
        try state?.refuseNewerCheckpoint(planned.name, of: domain.definition.uuid)
        let isLeft = await isBeingTakenBack(planned.name, of: name)
        if isLeft || domain.keptLayers.contains(planned.name) || domain.keepsEveryLayer {
            // A disk that is not served now would bring the old bitmap back under the new name; one
            // that another server has brings none back.
            for disk in domain.definition.disks where disk.isTrackable && !domain.isAway(disk) {
                guard case .failed(let reason) = domain.attachments[disk.target] else { continue }
                throw .diskUnavailable(domain: name, target: disk.target, reason: reason)
            }
            try await deleteLayers(planned.name, of: domain)
        }
        try state?.save(planned, of: domain.definition.uuid)
        domains[name]?.keptLayers.remove(planned.name)
    }

    /// Makes a prepared checkpoint known.
    func commit(_ planned: CheckpointMetadata, domain name: String) throws(ControlError) {
        let domain = try domain(name)
        var committed = planned
        committed.phase = .committed
        var tree = domain.checkpoints
        try tree.redefine(committed)
        try state?.save(committed, of: domain.definition.uuid)
        domains[name]?.checkpoints = tree
        events.append(
            ControlEvent(
                .checkpointCreated, domain: name, id: planned.jobID,
                message: "checkpoint \(planned.name)"))
    }

    /// Removes every trace of a checkpoint that could not be committed.
    func takeBack(_ planned: CheckpointMetadata, domain name: String) async {
        guard let domain = domains[name] else { return }
        do throws(ControlError) {
            try await deleteLayers(planned.name, of: domain)
            try state?.removeCheckpoint(planned.name, of: domain.definition.uuid)
        } catch {
            // Nobody knows it, and the next start takes up what stays here.
            unsettled[planned.jobID ?? planned.name] = Unsettled(
                domain: name, checkpoint: planned.name)
            noteStateProblem(
                "checkpoint '\(planned.name)' could not be taken back yet: \(error.message)",
                domain: name, id: planned.jobID)
        }
    }

    /// An import that was cut off, given again, must find the disk's checkpoints as it left them.
    private func checkNotComing(
        _ checkpoint: CheckpointMetadata, in domain: ManagedDomain
    ) throws(ControlError) {
        for disk in checkpoint.disks where disk.bitmap != nil {
            guard domain.moves[disk.target]?.phase == .coming else { continue }
            throw .cannotMove(
                disk.target,
                "the import of its state was cut off: give disk-import-state again first, or"
                    + " detach-disk and attach-disk serve it without its checkpoints")
        }
    }

    func deleteLayers(_ name: String, of domain: ManagedDomain) async throws(ControlError) {
        for (_, id) in trackedDisks(of: domain).sorted(by: { $0.key < $1.key }) {
            do {
                try await engine.deleteCheckpoint(name, disk: id)
            } catch {
                throw controlError(from: error)
            }
        }
    }

    /// Deletes checkpoints; jobs that run from them go on.
    ///
    /// - Parameter metadataOnly: what is known of them goes, their bitmaps stay: a redefinition
    ///   finds them again, a new checkpoint of the name or `undefine --checkpoints` removes them.
    /// - Throws: 103 for an unknown one. With several to delete, those before a failure are gone.
    package func deleteCheckpoint(
        _ checkpoint: String, of name: String, scope: CheckpointTree.Scope = .one,
        metadataOnly: Bool = false
    ) async throws(ControlError) {
        if isLeaving { throw .serverRestarting }
        _ = try domain(name)
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        let names = try domain(name).checkpoints.removal(of: checkpoint, scope)
        for each in names { try await removeOne(each, of: name, metadataOnly: metadataOnly) }
    }

    // The children's new parent is kept first, then the checkpoint is forgotten, then its bitmaps
    // go: after a crash anywhere the tree is whole and bitmaps left over are stray.
    private func removeOne(
        _ checkpoint: String, of name: String, metadataOnly: Bool
    ) async throws(ControlError) {
        let domain = try domain(name)
        let uuid = domain.definition.uuid
        let gone = try domain.checkpoints.checkpoint(checkpoint)
        try checkNotComing(gone, in: domain)
        var tree = domain.checkpoints
        let children = tree.remove(checkpoint)
        try noteDeletion(of: gone)
        for child in children { try state?.save(child, of: uuid) }
        if metadataOnly {
            var forgotten = gone
            forgotten.phase = .forgotten
            try state?.save(forgotten, of: uuid)
            domains[name]?.keptLayers.insert(checkpoint)
        } else {
            try state?.removeCheckpoint(checkpoint, of: uuid)
            do throws(ControlError) {
                try await deleteLayers(checkpoint, of: domain)
            } catch {
                restore(gone, of: domain)
                throw error
            }
        }
        domains[name]?.checkpoints = tree
        events.append(
            ControlEvent(.checkpointDeleted, domain: name, message: "checkpoint \(checkpoint)"))
    }

    // The next server must not take the job for one whose begin was cut off before its checkpoint
    // stood.
    private func noteDeletion(of gone: CheckpointMetadata) throws(ControlError) {
        guard let id = gone.jobID, let job = jobs[id], case .running = job.state,
            job.record.resume != nil
        else { return }
        var record = job.record
        record.checkpointDeleted = true
        try state?.update(record)
        jobs[id]?.record = record
    }

    // What cannot be written back is forgotten at the next start, and its bitmaps go then.
    private func restore(_ gone: CheckpointMetadata, of domain: ManagedDomain) {
        let uuid = domain.definition.uuid
        do throws(ControlError) {
            try state?.save(gone, of: uuid)
            for child in domain.checkpoints.children(of: gone.name) {
                if let before = domain.checkpoints[child] { try state?.save(before, of: uuid) }
            }
        } catch {
            noteStateProblem(error.message, domain: domain.definition.name)
        }
    }
}
