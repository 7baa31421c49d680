import Tracking

/// What copies and time bring about.
extension CopyBeforeWrite {
    /// The copy's clusters are in its buffer, or could not be read.
    ///
    /// `zeroClusters` has a bit for each cluster, counted from the copy's first, that is all zeros.
    package mutating func readFinished(
        copy: CopyIndex, errno: Int32?, zeroClusters: UInt64, now: UInt64
    ) {
        precondition(copies[copy].isActive && copies[copy].isReading)
        copies[copy].isReading = false
        if let errno {
            forEachJob(copies[copy].jobs & activeJobs) { gate, job in
                gate.breakJob(job, cause: .sourceRead(errno: errno), now: now)
            }
        } else {
            forEachJob(copies[copy].jobs & activeJobs) { gate, job in
                gate.preserve(copy, for: job, zeroClusters: zeroClusters, now: now)
            }
            settle(copies[copy].jobs & activeJobs)
        }
        if copies[copy].writesInFlight == 0 { finish(copy, now: now) }
    }

    /// A write of preserved clusters is complete, or has failed.
    package mutating func scratchWriteFinished(
        _ write: ScratchWrite, errno: Int32?, now: UInt64
    ) {
        let copy = write.copy
        precondition(copies[copy].writesByJob[write.job.number] > 0)
        copies[copy].writesByJob[write.job.number] -= 1
        copies[copy].writesInFlight -= 1
        if let errno {
            breakJob(write.job, cause: .scratchWrite(errno: errno), now: now)
        } else if jobs[write.job].isActive, let view = jobs[write.job].view?.view {
            for index in 0..<write.count {
                let cluster = copies[copy].clusters.lowerBound + write.position + index
                let slot = write.slot + UInt32(index)
                if view.isPreserved(cluster) {
                    // Released meanwhile.
                    jobs[write.job].freeSlots.add(slot)
                } else {
                    view.publish(cluster, .slot(slot))
                    jobs[write.job].preserved += 1
                }
            }
            view.settle()
        }
        if copies[copy].writesInFlight == 0, !copies[copy].isReading { finish(copy, now: now) }
    }

    /// Breaks every job that has kept a guest write waiting for longer than it allows.
    ///
    /// A write waits behind a copy for all jobs that need one of its clusters, those included that
    /// began after the copy did: each of them breaks when its own limit is over.
    package mutating func expire(now: UInt64) {
        guard activeCopies > 0 else { return }
        for copy in CopyIndex.all where copies[copy].isActive {
            let age = now - min(now, copies[copy].startedAt)
            forEachJob(copies[copy].jobs & activeJobs) { gate, job in
                let limit = gate.jobs[job].copyTimeoutNanoseconds
                let isWaitedFor =
                    gate.copies[copy].isReading || gate.copies[copy].writesByJob[job.number] > 0
                if isWaitedFor, age > limit { gate.breakLate(job, now: now) }
            }
        }
        // Breaking a job moves writes from list to list, so all are looked through first.
        var overdue = overdue(for: starved, now: now)
        for copy in copies where copy.isActive {
            overdue |= self.overdue(for: copy.waiters, now: now)
        }
        forEachJob(overdue) { gate, job in gate.breakLate(job, now: now) }
    }

    private mutating func breakLate(_ job: JobIndex, now: UInt64) {
        let limit = jobs[job].copyTimeoutNanoseconds
        breakJob(job, cause: .copyTimeout(milliseconds: limit / 1_000_000), now: now)
    }

    /// Whole jobs that need what a write of the list waits to overwrite, for longer than they
    /// allow.
    private func overdue(for list: WaitList, now: UInt64) -> UInt16 {
        var overdue: UInt16 = 0
        var change = Int(list.head)
        while change >= 0 {
            let age = now - min(now, waiters[change].waitingSince)
            let late = JobIndex.all.reduce(into: UInt16(0)) { mask, job in
                if age > jobs[job].copyTimeoutNanoseconds { mask |= job.mask }
            }
            if late & activeJobs & ~overdue != 0 {
                for cluster in waiters[change].clusters { overdue |= need(of: cluster) & late }
            }
            change = Int(waiters[change].next)
        }
        return overdue
    }

    private mutating func preserve(
        _ copy: CopyIndex, for job: JobIndex, zeroClusters: UInt64, now: UInt64
    ) {
        let clusters = copies[copy].clusters
        var position = 0
        while position < clusters.count {
            guard isStillNeeded(position, of: copy, by: job) else {
                position += 1
                continue
            }
            if zeroClusters >> UInt64(position) & 1 == 1 {
                publishZero(clusters.lowerBound + position, for: job.mask)
                position += 1
                continue
            }
            var end = position + 1
            while end < clusters.count, isStillNeeded(end, of: copy, by: job),
                zeroClusters >> UInt64(end) & 1 == 0
            { end += 1 }
            guard write(copy, job, position..<end, now: now) else { return }
            position = end
        }
    }

    /// Whether a cluster that was needed when its copy began has not been released since.
    private func isStillNeeded(_ position: Int, of copy: CopyIndex, by job: JobIndex) -> Bool {
        guard copies[copy].needs[position] & job.mask != 0,
            let view = jobs[job].view?.view
        else { return false }
        return !view.isPreserved(copies[copy].clusters.lowerBound + position)
    }

    private mutating func write(
        _ copy: CopyIndex, _ job: JobIndex, _ positions: Range<Int>, now: UInt64
    ) -> Bool {
        var position = positions.lowerBound
        while position < positions.upperBound {
            guard let slots = takeSlots(job, atMost: positions.upperBound - position) else {
                breakJob(job, cause: .scratchFull, now: now)
                return false
            }
            copies[copy].writesByJob[job.number] += 1
            copies[copy].writesInFlight += 1
            actions.append(
                .writeScratch(
                    ScratchWrite(
                        copy: copy, job: job, position: position, count: slots.count,
                        slot: slots.lowerBound)))
            position += slots.count
        }
        return true
    }

    /// Neighbouring slots for so many clusters, or for some of them; nil when there is none.
    private mutating func takeSlots(_ job: JobIndex, atMost count: Int) -> Range<UInt32>? {
        if let again = jobs[job].freeSlots.take(atMost: count) { return again }
        let first = jobs[job].slotsUsed
        let left = jobs[job].slotLimit - first
        guard left > 0 else { return nil }
        jobs[job].slotsUsed += min(left, UInt32(count))
        return first..<jobs[job].slotsUsed
    }

    mutating func publishZero(_ cluster: Int, for mask: UInt16) {
        forEachJob(mask) { gate, job in
            gate.jobs[job].view?.view.publish(cluster, .zero)
            gate.jobs[job].preserved += 1
            gate.jobs[job].zeros += 1
        }
    }

    mutating func settle(_ mask: UInt16) {
        forEachJob(mask) { gate, job in gate.jobs[job].view?.view.settle() }
    }

    private mutating func finish(_ copy: CopyIndex, now: UInt64) {
        let list = copies[copy].waiters
        let named = copies[copy].jobs
        // The arrays inside it are kept: a copy allocates nothing.
        copies[copy].isActive = false
        copies[copy].waiters = WaitList()
        activeCopies -= 1
        actions.append(.copyDone(copy: copy))
        forEachJob(named) { gate, job in
            gate.jobs[job].copyCount -= 1
            gate.finishDetaching(job)
        }
        reconsider(list, now: now)
        let hungry = starved
        starved = WaitList()
        reconsider(hungry, now: now)
    }

    /// Checks waiting writes again: those that need nothing more pass, the others queue
    /// anew.
    private mutating func reconsider(_ list: WaitList, now: UInt64) {
        var change = Int(list.head)
        while change >= 0 {
            let next = Int(waiters[change].next)
            if place(change, now: now) { actions.append(.pass(ChangeID(change))) }
            change = next
        }
    }

    /// After a job stopped needing anything: the writes pass that waited only for its copies.
    mutating func passUnneeded(now: UInt64) {
        for copy in CopyIndex.all where copies[copy].isActive {
            let list = copies[copy].waiters
            guard list.head >= 0 else { continue }
            copies[copy].waiters = WaitList()
            reconsider(list, now: now)
        }
        let hungry = starved
        starved = WaitList()
        reconsider(hungry, now: now)
    }
}
