import IORing
import ScratchFiles
import Simulation
import SystemLayer

/// What rings have others do.
extension ServerWorld {
    func start(_ work: RingWork, _ ring: Int) -> Bool {
        if case .writeScratch(let export, let ticket, let bytes, let position) = work {
            guard let part = part(FileHandle(export.scratch.raw)) else { return false }
            // Now and then there is no thread for it.
            if swarm.faultRate > 0, part.writes.isEmpty, draw.below(200) == 0, !isFinishing {
                part.hasFailed = true
                return false
            }
            part.writes.append(
                ScratchWriteUnderWay(ticket: ticket, bytes: bytes, position: position))
            return true
        }
        self.work.append((work, ring))
        return true
    }

    func revokeWrites(to export: BackupExport) -> ScratchTicket? {
        guard let part = part(FileHandle(export.scratch.raw)) else { return nil }
        guard part.hasBegun, let running = part.writes.first else {
            part.writes = []
            return nil
        }
        part.writes.removeSubrange(1...)
        // It was answered before it was made.
        if canary == .keepsBeforeWriting { return nil }
        defer { part.isRevoked = true }
        return part.isRevoked ? nil : running.ticket
    }

    func doSomeWork() {
        let parts = jobs.flatMap(\.parts).filter { !$0.writes.isEmpty }
        if let part = draw.pick(parts), draw.chance(80) { return writeScratch(part) }
        guard !work.isEmpty else { return }
        let next = work.remove(at: draw.below(work.count))
        if !carryOut(next.work) { work.append(next) }
    }

    /// False: its place hangs.
    func carryOut(_ work: RingWork) -> Bool {
        switch work {
        case .emptyScratch(let export): part(FileHandle(export.scratch.raw))?.scratch.empty()
        case .reclaim(_, let piece, _):
            for mailbox in shared.mailboxes { mailbox.post(.spaceReclaimed(piece: piece)) }
        case .closeScratch, .writeScratch: break
        case .writeLog, .saveBits, .declareLoss: return carryOutTracking(work)
        }
        return true
    }

    // MARK: Writers of scratch

    /// The writer of a scratch begins with its oldest write, or ends it.
    func writeScratch(_ part: JobPart) {
        if part.isHung { return }
        if faults.hangs(part.place) {
            part.hasFailed = true
            part.isHung = part.hasBegun && faults.conditions[part.place] == .hangsForEver
            return
        }
        guard part.hasBegun else {
            part.hasBegun = true
            part.isRevoked = false
            if canary == .keepsBeforeWriting { answer(part, part.writes[0].ticket, .written) }
            return
        }
        let write = part.writes[0]
        var outcome = ScratchOutcome.written
        switch faults.next(part.place, rate: swarm.faultRate, &draw) {
        case .fails(let errno), .failsDone(let errno): outcome = .failed(errno)
        case .hangs:
            part.isHung = true
            part.hasFailed = true
            note("scratch of job \(part.job) hangs for ever")
            return
        case .losesLater: part.scratch.lose()
        case .delays, nil: break
        }
        if outcome != .written { part.hasFailed = true }
        part.writes.removeFirst()
        part.hasBegun = false
        if outcome == .written { put(write, part) }
        if canary == .hidesScratchErrors { outcome = .written }
        if canary != .keepsBeforeWriting { answer(part, write.ticket, outcome) }
    }

    /// The bytes are those of the moment: the ring has to leave them alone until it is answered.
    private func put(_ write: ScratchWriteUnderWay, _ part: JobPart) {
        let first = Int(write.position / UInt64(Sectors.bytes))
        for (offset, stamp) in Sectors.stamps(write.bytes.copy()).enumerated() {
            let sector = first + offset
            part.scratch.write(
                [stamp], slot: sector / DiskShape.clusterSectors,
                from: sector % DiskShape.clusterSectors)
        }
    }

    private func answer(_ part: JobPart, _ ticket: ScratchTicket, _ outcome: ScratchOutcome) {
        shared.mailboxes[part.export.homeRing].post(.scratchWritten(ticket, outcome))
    }

    /// The process of a writer is gone: what it had begun may have been done.
    func loseWriter(of part: JobPart) {
        if part.hasBegun, let write = part.writes.first, draw.chance(50) { put(write, part) }
        part.writes = []
        part.hasBegun = false
        part.isRevoked = false
    }
}
