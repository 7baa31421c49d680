import NBDProtocol
import ServerInterface
import Simulation
import Tracking
import TrackingFiles

/// A backup tool that keeps what its jobs deliver, and control, which says what becomes of a job's
/// checkpoint.
///
/// Control itself is not simulated: the world does as `JobManager+Verdict` does.
extension ServerWorld {
    /// A job is over: what it has delivered is part of the tool's chain; the checkpoint of one that
    /// has failed is no base for anything.
    func settle(_ job: ServedJob, isGood: Bool) {
        guard !job.isSettled, job.isPublished else { return }
        job.isSettled = true
        for part in job.parts {
            let copy = isGood ? delivered(part) : part.disk.lastCopy
            if isGood {
                check(copy, part)
                part.disk.lastCopy = copy
            }
            guard let name = job.checkpoint else { continue }
            part.disk.copies[name] = copy
            if !isGood, canary != .keepsFailedCheckpoint { part.disk.takenBack.append(name) }
        }
    }

    /// What the tool has after the job: the instant, or the base's copy with what is dirty since;
    /// nil where it does not have that.
    private func delivered(_ part: JobPart) -> [Stamp]? {
        guard let base = part.base else { return part.instant }
        guard let copy = part.disk.copies[base], let dirty = part.dirty else { return nil }
        return copy.indices.map { index in
            let block = Int(part.disk.source.shape.byte(at: index) >> Self.granularityShift)
            return block < dirty.blockCount && dirty.isDirty(block)
                ? part.instant[index] : copy[index]
        }
    }

    /// P3: a chain of backups is the instant of its last.
    private func check(_ copy: [Stamp]?, _ part: JobPart) {
        guard let copy, part.disk.source.lostCount == 0 else { return }
        let wrong = copy.indices.first {
            copy[$0] != part.instant[$0] && part.disk.source.shape.isInside($0)
        }
        guard let wrong else { return }
        fail(
            "P3: the chain up to job \(part.job) gives sector \(wrong) of disk"
                + " \(part.disk.number) as \(copy[wrong]), the instant has \(part.instant[wrong])")
    }

    /// Checkpoints of jobs that have failed go, as soon as they can.
    func takeBack() {
        guard begin == nil, growth == nil, deletion == nil else { return }
        for disk in disks {
            guard let name = disk.takenBack.first, let store = store(disk) else { continue }
            guard store.record.chain.checkpoints.contains(name) else {
                disk.takenBack.removeFirst()
                continue
            }
            note("disk \(disk.number): checkpoint \(name) is taken back")
            deletion = (DeleteCheckpointCall(name, disk.id, server), disk, name)
            return
        }
    }
}
