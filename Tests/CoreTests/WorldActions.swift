import Core
import PointInTime
import ScratchFiles
import Tracking

extension Stage {
    /// Carries out what the disk's changes ask for, in order.
    func drain(_ world: inout World) throws(Violation) {
        while let action = world.changes.nextAction(&world.ring) {
            switch action {
            case .submit(let change): try letGo(change.number, in: &world)
            case .zero(let zeroer): try work(zeroer.number, in: &world)
            case .quiet: try becomeQuiet(&world)
            case .readSource(let copy, let clusters): try startCopy(copy, clusters, in: &world)
            case .writeScratch(let write): try startSave(write, in: &world)
            case .jobBroken(let slot, _):
                let job = try ordinal(of: slot, in: world)
                guard world.jobs[job].phase == .whole, ledgers[job].view.isClosed else {
                    throw Violation(text: "job \(job) broke twice, or with its ledger open")
                }
                world.jobs[job].phase = .broken
                giveUp(job, in: &world)
            case .copyDone(let copy):
                guard !world.saves.contains(where: { $0.write.copy == copy }) else {
                    throw Violation(text: "copy \(copy.number) is over while it is being saved")
                }
            case .jobDetached(let slot): try finishJob(slot, in: &world)
            case .writeLog, .syncBits, .declareLoss: try performRecording(action, in: &world)
            }
        }
    }

    private func becomeQuiet(_ world: inout World) throws(Violation) {
        guard world.beginning != nil, !world.isQuiet else {
            throw Violation(text: "the disk says that it is quiet, and nobody has asked")
        }
        world.isQuiet = true
        try checkQuiet(world)
    }

    /// While a disk is held and quiet nothing changes it.
    func checkQuiet(_ world: World) throws(Violation) {
        let atWork = world.writes.indices.filter { world.writes[$0].phase == .letGo }
        guard atWork.isEmpty, !world.zeroers.contains(where: { $0.phase == .working }) else {
            throw Violation(text: "changes \(atWork) are at work on a quiet disk")
        }
    }

    /// The job is broken or ends: what is on its way to its scratch is answered at once, whether it
    /// ever arrives or not.
    func giveUp(_ job: Int, in world: inout World) {
        let given = world.saves.filter { $0.job == job }
        world.saves.removeAll { $0.job == job }
        for save in given {
            world.changes.scratchWritten(save.write, errno: 125, now: world.now)
        }
    }

    /// The change goes to the source: nothing that it touches may still be needed.
    func letGo(_ index: Int, in world: inout World) throws(Violation) {
        guard world.writes[index].phase == .waits else {
            throw Violation(text: "write \(index) was let go twice")
        }
        try checkUnneeded(index, in: world)
        for other in world.writes.indices where world.writes[other].phase == .letGo {
            try checkBlocks(index, other, in: world)
        }
        world.writes[index].phase = .letGo
        if world.isQuiet { try checkQuiet(world) }
        if scenario.driverRule != .marksLate { try mark(index, in: &world) }
        world.record?.submitted |= mask(world.writes[index].clusters)
        try checkRecord(world)
    }

    /// Of two writes that share a block and of which one writes back the other's bytes, one is at
    /// work.
    private func checkBlocks(_ index: Int, _ other: Int, in world: World) throws(Violation) {
        guard let unaligned = scenario.unaligned,
            unaligned.contains(index) || unaligned.contains(other),
            world.writes[index].clusters.overlaps(world.writes[other].clusters)
        else { return }
        throw Violation(text: "writes \(index) and \(other) undo each other in a block")
    }

    func checkUnneeded(_ token: Int, in world: World) throws(Violation) {
        for cluster in world.writes[token].clusters {
            for job in world.jobs.indices where isNeeded(cluster, by: job, in: world) {
                throw Violation(
                    text: "write \(token) overwrites cluster \(cluster), needed by job \(job)")
            }
        }
    }

    /// Whether a copy has nothing in flight any more.
    func isOver(_ copy: CopyModel, in world: World) -> Bool {
        copy.phase == .saving && !world.saves.contains { $0.write.copy == copy.copy }
    }

    private func ordinal(of slot: JobIndex, in world: World) throws(Violation) -> Int {
        let found = world.jobs.firstIndex { $0.isKnownToGate && $0.slot == slot }
        guard let found else {
            throw Violation(text: "an action for the unknown job \(slot.number)")
        }
        return found
    }

    private func startCopy(
        _ copy: CopyIndex, _ clusters: Range<Int>, in world: inout World
    ) throws(Violation) {
        world.copies = world.copies.filter { $0.copy != copy || !isOver($0, in: world) }
        guard !world.copies.contains(where: { $0.copy == copy }) else {
            throw Violation(text: "copy \(copy.number) is used while it is in flight")
        }
        guard !world.copies.contains(where: { $0.clusters.overlaps(clusters) }) else {
            throw Violation(text: "clusters \(clusters) are being copied already")
        }
        guard !clusters.isEmpty, clusters.count <= CopyBeforeWrite.clustersPerCopy,
            world.copies.count < CopyBeforeWrite.copiesMax
        else { throw Violation(text: "a copy of \(clusters) is beyond its bounds") }
        let jobs = world.jobs.indices.filter { job in
            clusters.contains { isNeeded($0, by: job, in: world) }
        }
        world.copies.append(CopyModel(copy: copy, clusters: clusters, jobs: jobs))
    }

    private func startSave(_ write: ScratchWrite, in world: inout World) throws(Violation) {
        let job = try ordinal(of: write.job, in: world)
        guard let copy = world.copies.first(where: { $0.copy == write.copy }),
            copy.phase == .saving, copy.jobs.contains(job)
        else { throw Violation(text: "\(write) belongs to no copy") }
        let first = copy.clusters.lowerBound + write.position
        for cluster in first..<(first + write.count) {
            guard world.jobs[job].copied.insert(cluster).inserted else {
                throw Violation(text: "cluster \(cluster) is copied twice for job \(job)")
            }
            guard !world.jobs[job].released.contains(cluster) else {
                throw Violation(text: "cluster \(cluster) is copied though it was let go of")
            }
        }
        let end = Int(write.slot) + write.count
        let slots = Int(write.slot)..<end
        guard slots.lowerBound <= world.jobs[job].scratch.count,
            end <= Int(scenario.jobs[job].slotLimit),
            slots.allSatisfy({ isFree($0, of: job, in: world) })
        else { throw Violation(text: "\(write) uses slots that are taken or do not exist") }
        for slot in slots {
            if slot == world.jobs[job].scratch.count { world.jobs[job].scratch.append(0) }
            world.jobs[job].scratch[slot] = World.garbage
        }
        let values = copy.buffer[write.position..<(write.position + write.count)]
        world.saves.append(SaveModel(write: write, job: job, values: Array(values)))
    }

    /// No cluster is in the slot, and nothing is on its way there.
    private func isFree(_ slot: Int, of job: Int, in world: World) -> Bool {
        let view = ledgers[job].view
        return !world.saves.contains { save in
            save.job == job && slot >= Int(save.write.slot)
                && slot < Int(save.write.slot) + save.write.count
        } && !(0..<geometry.clusterCount).contains { view.place(of: $0) == .slot(UInt32(slot)) }
    }

    private func finishJob(_ slot: JobIndex, in world: inout World) throws(Violation) {
        let job = try ordinal(of: slot, in: world)
        world.copies = world.copies.filter { !isOver($0, in: world) }
        guard world.jobs[job].phase == .ending else {
            throw Violation(text: "job \(job) was detached without being asked to")
        }
        guard !world.saves.contains(where: { $0.job == job }),
            !world.copies.contains(where: { $0.jobs.contains(job) })
        else { throw Violation(text: "job \(job) was detached with I/O in flight") }
        world.jobs[job].phase = .gone
        // Its scratch is deleted, or belongs to somebody else from now on.
        world.jobs[job].scratch = world.jobs[job].scratch.map { _ in World.garbage }
        world.jobs[job].copied = []
    }
}
