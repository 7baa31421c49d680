import Core
import NBDProtocol
import Simulation
import System
import WireClient

@testable import NBDServer

/// What can happen in a step.
enum Happening: Int, CaseIterable {
    case turn, kernel, work, tick, control
    case joinGuest, joinClient, talk, listen, ask, leave
    case beginJob, endJob
    case spoil, heal, loseScratch, loseSource

    /// How often it comes in a history.
    func weight(_ draw: inout Draw) -> Int {
        let usual =
            switch self {
            case .turn, .kernel: 150
            case .talk, .listen: 80
            case .ask: 60
            case .work: 30
            case .control: 20
            case .tick, .joinGuest, .joinClient: 8
            case .beginJob: 6
            case .endJob, .leave, .spoil, .heal: 3
            case .loseScratch: 2
            case .loseSource: 1
            }
        switch self {
        case .spoil, .leave, .loseScratch, .loseSource, .endJob: return draw.chance(50) ? usual : 0
        default: return usual
        }
    }
}

extension ServerWorld {
    func happen(_ happening: Happening) {
        switch happening {
        case .turn: turn(draw.below(boxes.count))
        case .kernel: moveKernel()
        case .work: doSomeWork()
        case .tick:
            now += 100_000_000
            ticksDue = Set(boxes.indices)
        case .control: stepCalls()
        case .joinGuest: if let disk = draw.pick(disks) { join(disk, nil, nil) }
        case .joinClient:
            if let job = draw.pick(jobs.filter { $0.isPublished && !$0.isEnding }),
                let part = draw.pick(job.parts)
            {
                join(part.disk, part, job)
            }
        case .talk: if let peer = draw.pick(peers) { talk(peer) }
        case .listen: if let peer = draw.pick(peers) { listen(peer) }
        case .ask: if let peer = draw.pick(peers) { ask(peer) }
        case .leave: if let peer = draw.pick(peers) { leave(peer) }
        case .beginJob: beginJob()
        case .endJob: if let job = draw.pick(jobs) { endJob(job) }
        case .spoil: spoil()
        case .heal: heal()
        case .loseScratch:
            if let part = draw.pick(jobs.flatMap(\.parts)), part.scratch.hasContent {
                part.scratch.lose()
                if draw.chance(50) { part.scratch.evict() }
            }
        case .loseSource:
            if let disk = draw.pick(disks), disk.source.doom(&draw) { disk.hasFailed = true }
        }
    }

    // MARK: Rings

    func turn(_ ring: Int) {
        kernels[ring].submit()
        boxes[ring].loop.turn()
    }

    private func moveKernel() {
        let busy = kernels.filter { !$0.inFlight.isEmpty }
        guard let kernel = draw.pick(busy) else { return }
        kernel.move(draw.below(kernel.inFlight.count))
    }

    // MARK: Work that others do

    func doSomeWork() {
        let parts = jobs.flatMap(\.parts).filter { !$0.writes.isEmpty }
        if let part = draw.pick(parts), draw.chance(80) { return writeScratch(part) }
        guard !work.isEmpty else { return }
        work.remove(at: draw.below(work.count)).work.carryOut(self)
    }

    /// The writer of a scratch begins with its oldest write, or ends it.
    func writeScratch(_ part: JobPart) {
        if faults.hangs(part.place) || part.isHung { return }
        guard part.hasBegun else {
            part.hasBegun = true
            part.isRevoked = false
            if canary == .keepsBeforeWriting { answer(part, part.writes[0].ticket, .written) }
            return
        }
        let write = part.writes[0]
        var outcome = ScratchOutcome.written
        switch faults.next(part.place, rate: faultRate, &draw) {
        case .fails(let errno), .failsDone(let errno): outcome = .failed(errno)
        case .hangs:
            part.isHung = true
            note("scratch of job \(part.export.jobID) hangs for ever")
            return
        case .losesLater: part.scratch.lose()
        case .delays, nil: break
        }
        if outcome != .written { job(of: part)?.hasFailed = true }
        part.writes.removeFirst()
        part.hasBegun = false
        let slot = Int(write.position / 16384)
        for (index, stamp) in write.stamps.enumerated() where outcome == .written {
            part.scratch.write(
                [stamp][...], slot: slot + index / DiskShape.clusterSectors,
                from: index % DiskShape.clusterSectors)
        }
        if canary != .keepsBeforeWriting { answer(part, write.ticket, outcome) }
    }

    private func answer(_ part: JobPart, _ ticket: ScratchTicket, _ outcome: ScratchOutcome) {
        shared.mailboxes[part.export.homeRing].post(.scratchWritten(ticket, outcome))
    }

    func job(of part: JobPart) -> ServedJob? { jobs.first { $0.parts.contains { $0 === part } } }

    // MARK: Calls

    func stepCalls() {
        if let job = begin?.job, var call = begin?.call {
            let outcome = call.step(now: now)
            begin = (call, job)
            if let outcome {
                begin = nil
                note("job \(job.number): \(outcome.result)")
                if outcome.result == .fixed { publish(job) } else { drop(job) }
            }
        }
        var index = 0
        while index < endings.count {
            let job = endings[index].job
            var call = endings[index].call
            let outcome = call.step(now: now)
            endings[index] = (call, job)
            if outcome != nil {
                endings.remove(at: index)
                drop(job)
            } else {
                index += 1
            }
        }
    }

    /// The instant lies between the last disk's word and the first release: it is now.
    private func publish(_ job: ServedJob) {
        for part in job.parts {
            part.instant = part.disk.source.sectors
            _ = job.scope.add(.backup(part.export))
        }
        job.isPublished = true
    }

    private func drop(_ job: ServedJob) {
        job.isOver = true
        job.scope.removeAll()
        for part in job.parts { part.scratch.empty() }
    }

    func beginJob() {
        guard begin == nil, jobs.filter({ !$0.isOver }).count < 3 else { return }
        jobCount += 1
        let job = ServedJob(jobCount)
        let slots: UInt32 = draw.chance(20) ? UInt32(1 + draw.below(6)) : 1000
        for disk in disks where draw.chance(80) {
            if let part = try? JobPart(jobCount, disk, self, slots: slots) {
                job.parts.append(part)
            }
        }
        guard !job.parts.isEmpty else { return }
        jobs.append(job)
        note("job \(job.number) begins on \(job.parts.map(\.disk.number))")
        var instant = Instant()
        instant.exports = job.parts.map(\.export)
        begin = (InstantCall(instant, shared, now: now), job)
    }

    func endJob(_ job: ServedJob) {
        guard job.isPublished, !job.isEnding else { return }
        job.isEnding = true
        note("job \(job.number) ends")
        job.scope.removeAll()
        endings.append(
            (EndCall(job.parts.map(\.export), milliseconds: 3000, shared, now: now), job))
    }

    // MARK: Storage

    private func spoil() {
        var places: [Place] = disks.map { .source($0.number) }
        for job in jobs where !job.isOver { places += job.parts.map(\.place) }
        guard let place = draw.pick(places) else { return }
        var condition = Condition.fails(Faults.errnos[draw.below(3)])
        if draw.chance(50) { condition = .hangs }
        faults.set(condition, at: place)
        note("\(place) \(condition)")
    }

    func heal() {
        guard let place = draw.pick(faults.broken) else { return }
        faults.set(nil, at: place)
        note("\(place) is well")
        wake()
    }

    /// What places that are well have not answered they answer now.
    func wake() {
        for kernel in kernels {
            for operation in kernel.inFlight { operation.isHung = false }
        }
    }
}

extension RingWork {
    /// Does what a thread would; no tracking is simulated here.
    func carryOut(_ world: ServerWorld) {
        if case .reclaim(_, let piece) = self {
            for mailbox in world.shared.mailboxes { mailbox.post(.spaceReclaimed(piece: piece)) }
        }
    }
}
