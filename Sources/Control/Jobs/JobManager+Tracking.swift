import ServerInterface

extension JobManager {
    /// How the engine is to open one disk; nil for an empty drive.
    ///
    /// Every disk that can change is tracked, if there is a place to keep it.
    func configuration(
        of disk: DomainDisk, in domain: ManagedDomain
    ) throws(ControlError) -> DiskConfiguration? {
        var tracking: TrackingConfiguration?
        if let state, disk.isTrackable {
            let uuid = domain.definition.uuid
            try state.prepareTracking(of: uuid)
            tracking = TrackingConfiguration(
                directory: state.trackingDirectory(of: uuid, target: disk.target),
                granularityBytes: domain.granularityBytes)
        }
        var configuration = domain.definition.configuration(of: disk, tracking: tracking)
        configuration?.vhostSocket = vhostSocket(of: disk, in: domain)
        return configuration
    }

    /// Where a machine may have a disk with vhost-user: what its definition says, else by the
    /// setting.
    func vhostSocket(of disk: DomainDisk, in domain: ManagedDomain) -> String? {
        disk.vhostSocket
            ?? settings.vhostDirectory.map { directory in
                "\(directory)/\(domain.definition.name)-\(disk.target).sock"
            }
    }

    /// Why the engine could not open a disk; where this very server holds its source, who has it.
    func refusal(
        _ fault: ServerFault, of disk: DomainDisk, in name: String
    ) -> ControlError {
        switch fault {
        case .sourceLocked(let path, _), .sourceServed(let path, _):
            guard let holder = holder(of: path, disk, name) else { break }
            return .sourceServed(path, as: holder)
        default: break
        }
        return controlError(from: fault)
    }

    // By name only: looking at the paths of others might wait for their storage.
    private func holder(of path: String, _ disk: DomainDisk, _ name: String) -> String? {
        let plain = BackupPlanner.lexicallyNormal(path)
        for domain in domains.values {
            for other in domain.definition.disks {
                guard let path = other.path, BackupPlanner.lexicallyNormal(path) == plain,
                    domain.definition.name != name || other.target != disk.target,
                    case .attached = domain.attachments[other.target]
                else { continue }
                return "disk '\(other.target)' of domain '\(domain.definition.name)'"
            }
        }
        for job in jobs.values {
            for other in job.plan.disks where other.participates {
                guard let path = other.scratch?.path, BackupPlanner.lexicallyNormal(path) == plain
                else { continue }
                return "scratch of disk '\(other.target)' of backup job '\(job.id)' of domain "
                    + "'\(job.domain)'"
            }
        }
        return nil
    }

    /// Takes up the checkpoints that the state directory keeps of a domain.
    ///
    /// One whose making was cut off, and one made with a job that did not end well (of `jobIDs`, or
    /// unsettled), is forgotten; the disks drop their part of it when they are attached. Returns a
    /// line for each damaged file.
    func loadCheckpoints(
        into domain: inout ManagedDomain, discarding jobIDs: Set<String> = []
    ) -> [String] {
        guard let state else { return [] }
        let uuid = domain.definition.uuid
        let kept = state.checkpoints(of: uuid)
        let committed = kept.records.filter { $0.phase == .committed }
        var repaired: [String] = []
        domain.checkpoints = CheckpointTree(committed, repaired: &repaired)
        domain.keptLayers = kept.damagedNames.union(
            kept.records.filter { $0.phase == .forgotten }.map(\.name))
        domain.keepsEveryLayer = !kept.isListed
        var warnings = note(kept.damaged)
        let bad = jobIDs.union(unsettled.filter { !$0.value.isForeign }.keys)
        let discarded = kept.records.filter { record in
            record.phase != .pending && record.jobID.map(bad.contains) ?? false
        }.map(\.name)
        noteDiscarded(kept.records, bad, of: domain.definition.name)
        domain.keptLayers.subtract(discarded)
        // The file of a failed job's checkpoint is damaged: its bitmaps are stray all the same.
        let ofBadJobs = unsettled.values.filter { $0.domain == domain.definition.name }
        domain.keptLayers.subtract(
            kept.damagedNames.intersection(ofBadJobs.compactMap(\.checkpoint)))
        let cutOff = kept.records.filter { $0.phase == .pending }.map(\.name)
        do throws(ControlError) {
            for name in discarded where domain.checkpoints[name] != nil {
                repaired += domain.checkpoints.remove(name).map(\.name)
            }
            for name in Set(repaired) {
                if let changed = domain.checkpoints[name] { try state.save(changed, of: uuid) }
            }
            for name in discarded + cutOff { try state.removeCheckpoint(name, of: uuid) }
        } catch {
            warnings.append(error.message)
            noteStateProblem(error.message, domain: domain.definition.name)
        }
        return warnings
    }

    // Remembered before anything is tried: whatever fails, they are no bases.
    private func noteDiscarded(
        _ records: [CheckpointMetadata], _ bad: Set<String>, of name: String
    ) {
        for record in records where record.phase != .pending {
            guard let id = record.jobID, bad.contains(id) else { continue }
            unsettled[id] = Unsettled(domain: name, checkpoint: record.name)
            events.append(
                ControlEvent(
                    .checkpointDeleted, domain: name, id: id,
                    message: "checkpoint \(record.name): taken back, its backup did not end well"))
        }
    }

    /// Drops what is left of the tracking of disks that the domain does not have, or cannot change,
    /// any more: a later disk under such a name must begin anew.
    ///
    /// Returns a line for each failure.
    func dropStrayTracking(of definition: DomainDefinition) -> [String] {
        guard let state else { return [] }
        let tracked = Set(definition.disks.filter(\.isTrackable).map(\.target))
        do throws(ControlError) {
            for target in try state.trackedTargets(of: definition.uuid)
            where !tracked.contains(target) {
                try endTracking(of: definition.uuid, target: target)
            }
            return []
        } catch {
            return ["domain '\(definition.name)': \(error.message)"]
        }
    }

    /// Removes everything of one disk's change tracking.
    func endTracking(of uuid: String, target: String) throws(ControlError) {
        guard let state else { return }
        try state.removeTracking(of: uuid, target: target)
        engine.forgetTracking(directory: state.trackingDirectory(of: uuid, target: target))
    }

    /// Brings a disk that has just been attached in step with what is known of its domain.
    ///
    /// A checkpoint that the disk holds and nobody knows is deleted: it was cut off while it was
    /// made or deleted. One that is known and that the disk does not hold stays known.
    func reconcile(_ id: DiskID, _ disk: DomainDisk, of domain: ManagedDomain) async {
        let name = domain.definition.name
        let status: DiskStatus
        do {
            status = try await engine.diskStatus(id)
        } catch {
            note(
                "its checkpoints cannot be read: \(controlError(from: error).message)",
                of: name, disk: disk.target)
            return
        }
        if let loss = status.earlierLoss {
            events.append(
                ControlEvent(
                    .diskProblem, domain: name, disk: disk.target,
                    message: "writes to it were lost before it was attached (\(loss)): every flush"
                        + " of its machine fails. Stop the machine, check the storage and what the"
                        + " disk holds, then attach the disk again"))
        }
        guard let tracking = status.tracking else { return }
        if tracking.recoveredBytes > 0 {
            events.append(
                ControlEvent(
                    .trackingRecovered, domain: name, disk: disk.target,
                    usedBytes: tracking.recoveredBytes,
                    message: "\(tracking.recoveredBytes) bytes count as changed: the last stop was "
                        + "unclean, or the disk was changed or has grown while it was not served"))
        }
        if let problem = tracking.problem {
            events.append(
                ControlEvent(.trackingProblem, domain: name, disk: disk.target, message: problem))
        }
        guard !domain.keepsEveryLayer else { return }
        for checkpoint in tracking.checkpoints
        where domain.checkpoints[checkpoint] == nil && !domain.keptLayers.contains(checkpoint) {
            do {
                try await engine.deleteCheckpoint(checkpoint, disk: id)
            } catch {
                let reason = controlError(from: error).message
                events.append(
                    ControlEvent(
                        .trackingProblem, domain: name, disk: disk.target,
                        message: "stray checkpoint '\(checkpoint)' cannot be removed: \(reason)"))
            }
        }
    }

    /// What incremental backups of the domain can start from now.
    func incrementalBases(
        of name: String, fallsBackToFull: Bool
    ) async throws(ControlError) -> IncrementalBases {
        let domain = try domain(name)
        var bases = IncrementalBases(
            known: Set(domain.checkpoints.names), unready: unreadyCheckpoints(of: domain),
            fallsBackToFull: fallsBackToFull)
        for disk in domain.definition.disks {
            guard case .attached(let id) = domain.attachments[disk.target] else { continue }
            let status: DiskStatus
            do {
                status = try await engine.diskStatus(id)
            } catch {
                bases.problems[disk.target] = controlError(from: error).message
                continue
            }
            guard let tracking = status.tracking else {
                bases.problems[disk.target] = "its changes are not tracked"
                continue
            }
            bases.usable[disk.target] = Set(tracking.checkpoints)
            bases.problems[disk.target] = tracking.problem
        }
        return bases
    }

    /// The domain's attached disks that are tracked, by target.
    func trackedDisks(of domain: ManagedDomain) -> [String: DiskID] {
        var found: [String: DiskID] = [:]
        for disk in domain.definition.disks where disk.isTrackable {
            if case .attached(let id) = domain.attachments[disk.target] { found[disk.target] = id }
        }
        return found
    }

    /// Waits until nobody else changes the domain's checkpoints; undone by `unlockCheckpoints`.
    func lockCheckpoints(of name: String) async {
        guard checkpointQueues[name] != nil else {
            checkpointQueues[name] = []
            return
        }
        await withCheckedContinuation { checkpointQueues[name]?.append($0) }
    }

    /// Lets the next one change the domain's checkpoints.
    func unlockCheckpoints(of name: String) {
        guard checkpointQueues[name]?.isEmpty == false else {
            checkpointQueues[name] = nil
            return
        }
        checkpointQueues[name]?.removeFirst().resume()
    }
}

extension JobManager {
    /// Something is wrong with the tracking of a disk's changes.
    func noteTracking(_ disk: DiskID, _ message: String) {
        note(.trackingProblem, of: disk, message)
    }

    /// Tells an event of a disk that is attached, or was.
    func note(_ kind: ControlEvent.Kind, of disk: DiskID, _ message: String) {
        for domain in domains.values {
            for (target, attachment) in domain.attachments where attachment == .attached(disk) {
                return tell(kind, domain.definition.name, target, message)
            }
        }
        if let name = diskNames.name(of: disk) {
            tell(kind, name.domain, name.target, message)
        } else {
            diskNames.keep(kind, of: disk, message)
        }
    }

    /// The engine has a disk: what it has told of it before is told.
    func know(_ id: DiskID, _ disk: DomainDisk, of domain: String) {
        for (kind, message) in diskNames.know(id, domain: domain, target: disk.target) {
            tell(kind, domain, disk.target, message)
        }
    }

    private func tell(
        _ kind: ControlEvent.Kind, _ domain: String, _ target: String, _ message: String
    ) {
        events.append(ControlEvent(kind, domain: domain, disk: target, message: message))
    }
}
