import ServerInterface

/// What becomes of the checkpoint that was made with a job.
///
/// It becomes a base only when the job has ended well: with the verdict success, or aborted while
/// it was whole. Until then no backup may start from it, and any other end takes it back. The job's
/// record in the state directory means "not ended well": it is written before the job begins
/// and goes when the verdict is in and everything is done, so a crash at any moment leaves a record
/// by which the next start takes the checkpoint back.
extension JobManager {
    /// A job that has not ended well and whose checkpoint may still be in a chain.
    struct Unsettled: Sendable {
        let domain: String
        /// Name of the checkpoint, as far as it is known.
        var checkpoint: String?
        /// The record on disk belongs to a newer version: it is left alone.
        var isForeign = false
        /// The record names files that could not be dealt with yet: it stays for the next start.
        var keepsFiles = false
    }

    /// Why no backup can start from a checkpoint now; nil when the job it was made with ended well,
    /// or when there was none.
    func unreadyReason(_ checkpoint: CheckpointMetadata) -> String? {
        guard let id = checkpoint.jobID else { return nil }
        if jobs[id] != nil {
            return "backup job '\(id)', which made it, has not ended: end it first"
        }
        if unsettled[id]?.isForeign == true {
            return "what became of backup job '\(id)', which made it, only a newer version can tell"
        }
        return unsettled[id] == nil
            ? nil : "backup job '\(id)', which made it, failed, and it is being taken back"
    }

    /// The checkpoints of a domain that are no base yet, with the reason.
    func unreadyCheckpoints(of domain: ManagedDomain) -> [String: String] {
        var reasons: [String: String] = [:]
        for name in domain.checkpoints.names {
            reasons[name] = domain.checkpoints[name].flatMap(unreadyReason)
        }
        return reasons
    }

    /// Takes back the checkpoint made with a job that did not end well.
    ///
    /// From the first step on it is unknown, so nothing can start from it. Returns what is still to
    /// be done, nil when every trace of it is gone; then the job's record may go.
    func takeBackCheckpoint(
        ofJob id: String, domain name: String, checkpoint: String?
    ) async -> String? {
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        guard let domain = domains[name] else { return nil }
        let uuid = domain.definition.uuid
        guard let found = self.checkpoint(ofJob: id, domain: name)?.name else { return nil }
        unsettled[id] = Unsettled(domain: name, checkpoint: found)
        var tree = domain.checkpoints
        let children = tree[found] == nil ? [] : tree.remove(found)
        domains[name]?.checkpoints = tree
        domains[name]?.keptLayers.remove(found)
        events.append(
            ControlEvent(
                .checkpointDeleted, domain: name, id: id,
                message: "checkpoint \(found): taken back, its backup did not end well"))
        do throws(ControlError) {
            for child in children { try state?.save(child, of: uuid) }
            try state?.removeCheckpoint(found, of: uuid)
            try await deleteLayers(found, of: domain)
        } catch {
            return error.message
        }
        return await isGone(found, from: name) ? nil : "a disk that may hold it is not served"
    }

    /// What is known of the checkpoint that was made with a job, whoever has its name by now, also
    /// when it was deleted with its bitmaps kept; nil when every trace of it is gone.
    func checkpoint(ofJob id: String, domain name: String) -> CheckpointMetadata? {
        guard let domain = domains[name] else { return nil }
        let tree = domain.checkpoints
        if let known = tree.names.lazy.compactMap({ tree[$0] }).first(where: { $0.jobID == id }) {
            return known
        }
        let kept = state?.checkpoints(of: domain.definition.uuid).records ?? []
        return kept.first { $0.jobID == id && $0.phase != .pending }
    }

    /// Tries again to remove what a job that did not end well has left; its record goes with it.
    func settle(_ id: String) async {
        guard let left = unsettled[id], !left.isForeign, let domain = domains[left.domain] else {
            return
        }
        if let checkpoint = left.checkpoint {
            let isTaken = domain.checkpoints[checkpoint] != nil
            do throws(ControlError) {
                if !isTaken {
                    try state?.removeCheckpoint(checkpoint, of: domain.definition.uuid)
                    try await deleteLayers(checkpoint, of: domain)
                }
            } catch {
                return
            }
            guard await isGone(checkpoint, from: left.domain) || isTaken else { return }
        }
        do throws(ControlError) {
            if !left.keepsFiles { try state?.removeJob(id) }
            unsettled[id] = nil
        } catch {
            noteStateProblem(error.message, domain: left.domain, id: id)
        }
    }

    /// Whether a name belongs to a checkpoint that is still being taken back, after another try.
    func isBeingTakenBack(_ checkpoint: String, of name: String) async -> Bool {
        func found() -> [String] {
            unsettled.filter { $0.value.domain == name && $0.value.checkpoint == checkpoint }
                .map(\.key)
        }
        for id in found() { await settle(id) }
        return !found().isEmpty
    }

    // A disk that is not served, or whose chain cannot be read, may still hold it; one that another
    // server has never uses it again.
    private func isGone(_ checkpoint: String, from name: String) async -> Bool {
        guard let domain = domains[name], state != nil else { return true }
        for disk in domain.definition.disks where disk.isTrackable && !domain.isAway(disk) {
            guard case .attached(let id) = domain.attachments[disk.target],
                let tracking = try? await engine.diskStatus(id).tracking,
                !tracking.checkpoints.contains(checkpoint)
            else { return false }
        }
        return true
    }
}
