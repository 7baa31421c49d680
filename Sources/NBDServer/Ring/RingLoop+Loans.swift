import Disk
import IORing
import NBDProtocol
import Scratch

/// Pages of a disk that a guest may write, lent to backup clients while no guest is there.
///
/// The rules are those of `SourceLoans`. A ring that lends looks at a plain flag per request; all
/// else happens when a guest comes or goes.
extension RingLoop {
    // MARK: Lending, on any ring

    /// Whether pages of the source may go to this peer although a guest may write them one day.
    mutating func lendsPages(_ slot: Int, _ export: BackupExport, _ strategy: ReadStrategy) -> Bool
    {
        switch connections[slot].loan {
        case .open: return true
        case .recalled: return false
        case .none: break
        }
        guard shared.configuration.lendsPages, connections[slot].phase == .transmission,
            strategy.maySettle, !export.source.isDirect, !export.ledger.view.isClosed
        else { return false }
        switch export.loans.lend() {
        case .lends:
            connections[slot].loan = .open
            connections[slot].loans = export.loans
            return true
        case .refusedWriterWaits:
            loansAreSettled(export.loans.disk)
            return false
        case .refused: return false
        }
    }

    /// A guest has come: nothing more is lent, and what is on its way is waited for.
    mutating func recallLoans(_ disk: DiskID) {
        for slot in 0..<connections.capacity
        where connections.contains(slot) && connections[slot].loan == .open
            && connections[slot].loans?.disk.disk == disk
        {
            connections[slot].path.sourceByReference = false
            connections[slot].loan = .recalled
        }
        settleLoans()
    }

    /// Ends the recalled loans of which the peers have taken everything; looks again soon if a guest
    /// waits for others.
    mutating func settleLoans() {
        var isWaitedFor = false
        for slot in 0..<connections.capacity
        where connections.contains(slot) && connections[slot].loan == .recalled {
            if connections[slot].hasLent, isForBrokenJob(slot) {
                // First: what was taken since the break may have been the guest's already.
                forfeit(slot)
            } else if isSettled(slot) {
                endLoan(slot)
            } else if connections[slot].loans?.disk.hasWriters ?? false {
                isWaitedFor = true
            } else if connections[slot].phase != .closing {
                // The guest has gone before. Still counted, so the next one sees it.
                connections[slot].loan = .open
                markReady(slot)
            }
        }
        if isWaitedFor { settleClock.start(milliseconds: Limits.settleMilliseconds) }
    }

    /// Whether no page that the connection has lent can be read by its peer any more.
    private func isSettled(_ slot: Int) -> Bool {
        if !connections[slot].hasLent { return true }
        // What a closing connection has not sent is never sent.
        guard connections[slot].phase == .closing || connections[slot].output.isEmpty else {
            return false
        }
        return SocketCalls.hasTakenAll(connections[slot].descriptor.raw)
    }

    private func isForBrokenJob(_ slot: Int) -> Bool {
        connections[slot].loans?.isForBrokenJob ?? false
    }

    /// Nobody waits for the peer any more.
    ///
    /// What it had not read may be the guest's by now, in replies that say nothing is wrong: all that can
    /// be done is to hang up.
    private mutating func forfeit(_ slot: Int) {
        endLoan(slot)
        close(slot)
    }

    private mutating func endLoan(_ slot: Int) {
        guard let loans = connections[slot].loans else { return }
        connections[slot].loan = .none
        connections[slot].loans = nil
        connections[slot].hasLent = false
        connections[slot].path.sourceByReference = false
        if loans.dismiss() { loansAreSettled(loans.disk) }
        markReady(slot)
    }

    private func loansAreSettled(_ loans: SourceLoans) {
        shared.mailboxes[loans.homeRing].post(.loansSettled(loans.disk))
    }

    /// Whether a connection that nothing else refers to stays, because its peer can still read pages
    /// that a guest may want to write.
    mutating func lingers(_ slot: Int) -> Bool {
        guard connections[slot].loan != .none else { return false }
        if stopLatch == nil, !isForBrokenJob(slot), !isSettled(slot) {
            if now < connections[slot].deadline { return true }
            connections[slot].loans?.loseSight()
        }
        endLoan(slot)
        return false
    }

    /// The guest has waited long enough and goes on: the jobs that kept it waiting are broken, and
    /// their clients' connections go.
    mutating func abandonLoans(_ disk: DiskID) {
        for slot in 0..<connections.capacity
        where connections.contains(slot) && connections[slot].loan == .recalled
            && connections[slot].loans?.disk.disk == disk
        {
            // Another guest may have come since, and found whole jobs.
            if case .backup(let export) = connections[slot].target,
                !export.ledger.view.isClosed
            {
                continue
            }
            forfeit(slot)
        }
    }

    // MARK: Writers, on the home ring

    /// A connection that may write has chosen its export: it goes on when nothing is on loan.
    mutating func announceWriter(_ slot: Int) {
        let disk = connections[slot].disk
        let loans = disks[disk].export.loans
        loans.announceWriter()
        guard loans.hasLenders else { return breakUnwatched(disk) }
        connections[slot].phase = .attaching
        connections[slot].deadline = now + Limits.recallNanoseconds
        for mailbox in shared.mailboxes { mailbox.post(.recallLoans(loans.disk)) }
    }

    /// Nothing of the disk is on loan any more, as far as a ring knows: whoever waits for it goes on.
    mutating func loansSettled(_ disk: DiskID) {
        guard let slot = diskSlots[disk], !disks[slot].export.loans.hasLenders else { return }
        breakUnwatched(slot)
        admitWriters(slot)
    }

    /// The limit of a connection that waits is over.
    mutating func recallIsOverdue(_ disk: Int) {
        let loans = disks[disk].export.loans
        breakJobs(disk) { $0.isOutstanding }
        for mailbox in shared.mailboxes { mailbox.post(.abandonLoans(loans.disk)) }
        admitWriters(disk)
    }

    /// Nobody can say whether the peers of these jobs have read what they were lent.
    private mutating func breakUnwatched(_ disk: Int) { breakJobs(disk) { $0.hasUnwatched } }

    private mutating func breakJobs(_ disk: Int, where isConcerned: (ExportLoans) -> Bool) {
        for job in disks[disk].jobs.indices {
            guard let export = disks[disk].jobs[job], isConcerned(export.loans) else { continue }
            disks[disk].gate.breakJob(job, cause: .pagesNotTaken, now: now)
        }
        perform(disk)
    }

    private mutating func admitWriters(_ disk: Int) {
        for slot in 0..<connections.capacity
        where connections.contains(slot) && connections[slot].phase == .attaching
            && connections[slot].disk == disk
        {
            connections[slot].phase = .transmission
            markReady(slot)
        }
    }
}
