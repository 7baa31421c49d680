import Tracking

/// What copies and time bring about.
extension CopyBeforeWrite {
    /// The task's clusters are in its buffer, or could not be read.
    ///
    /// `zeroClusters` has a bit for each cluster, counted from the task's first, that is all zeros.
    package mutating func readFinished(
        task: CopyIndex, errno: Int32?, zeroClusters: UInt64, now: UInt64
    ) {
        precondition(tasks[task].isActive && tasks[task].isReading)
        tasks[task].isReading = false
        if let errno {
            forEachJob(tasks[task].jobs & activeJobs) { gate, job in
                gate.breakJob(job, cause: .sourceRead(errno: errno), now: now)
            }
        } else {
            forEachJob(tasks[task].jobs & activeJobs) { gate, job in
                gate.preserve(task, for: job, zeroClusters: zeroClusters, now: now)
            }
            settle(tasks[task].jobs & activeJobs)
        }
        if tasks[task].writesInFlight == 0 { finish(task, now: now) }
    }

    /// A write of preserved clusters is complete, or has failed.
    package mutating func scratchWriteFinished(
        _ write: ScratchWrite, errno: Int32?, now: UInt64
    ) {
        let task = write.task
        precondition(tasks[task].writesByJob[write.job.number] > 0)
        tasks[task].writesByJob[write.job.number] -= 1
        tasks[task].writesInFlight -= 1
        if let errno {
            breakJob(write.job, cause: .scratchWrite(errno: errno), now: now)
        } else if jobs[write.job].isActive, let view = jobs[write.job].view?.view {
            for index in 0..<write.count {
                let cluster = tasks[task].clusters.lowerBound + write.position + index
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
        if tasks[task].writesInFlight == 0, !tasks[task].isReading { finish(task, now: now) }
    }

    /// Breaks every job that has kept a guest write waiting for longer than it allows.
    ///
    /// A write waits behind a copy for all jobs that need one of its clusters, those included that
    /// began after the copy did: each of them breaks when its own limit is over.
    package mutating func expire(now: UInt64) {
        guard activeTasks > 0 else { return }
        for task in CopyIndex.all where tasks[task].isActive {
            let age = now - min(now, tasks[task].startedAt)
            forEachJob(tasks[task].jobs & activeJobs) { gate, job in
                let limit = gate.jobs[job].copyTimeoutNanoseconds
                let isWaitedFor =
                    gate.tasks[task].isReading || gate.tasks[task].writesByJob[job.number] > 0
                if isWaitedFor, age > limit { gate.breakLate(job, now: now) }
            }
        }
        // Breaking a job moves writes from list to list, so all are looked through first.
        var overdue = overdue(for: starved, now: now)
        for task in tasks where task.isActive {
            overdue |= self.overdue(for: task.waiters, now: now)
        }
        forEachJob(overdue) { gate, job in gate.breakLate(job, now: now) }
    }

    private mutating func breakLate(_ job: JobIndex, now: UInt64) {
        let limit = jobs[job].copyTimeoutNanoseconds
        breakJob(job, cause: .copyTimeout(milliseconds: limit / 1_000_000), now: now)
    }

    /// Whole jobs that need what a write of the list waits to overwrite, for longer than they allow.
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
        _ task: CopyIndex, for job: JobIndex, zeroClusters: UInt64, now: UInt64
    ) {
        let clusters = tasks[task].clusters
        var position = 0
        while position < clusters.count {
            guard isStillNeeded(position, of: task, by: job) else {
                position += 1
                continue
            }
            if zeroClusters >> UInt64(position) & 1 == 1 {
                publishZero(clusters.lowerBound + position, for: job.mask)
                position += 1
                continue
            }
            var end = position + 1
            while end < clusters.count, isStillNeeded(end, of: task, by: job),
                zeroClusters >> UInt64(end) & 1 == 0
            { end += 1 }
            guard write(task, job, position..<end, now: now) else { return }
            position = end
        }
    }

    /// Whether a cluster that was needed when its copy began has not been released since.
    private func isStillNeeded(_ position: Int, of task: CopyIndex, by job: JobIndex) -> Bool {
        guard tasks[task].needs[position] & job.mask != 0,
            let view = jobs[job].view?.view
        else { return false }
        return !view.isPreserved(tasks[task].clusters.lowerBound + position)
    }

    private mutating func write(
        _ task: CopyIndex, _ job: JobIndex, _ positions: Range<Int>, now: UInt64
    ) -> Bool {
        var position = positions.lowerBound
        while position < positions.upperBound {
            guard let slots = takeSlots(job, atMost: positions.upperBound - position) else {
                breakJob(job, cause: .scratchFull, now: now)
                return false
            }
            tasks[task].writesByJob[job.number] += 1
            tasks[task].writesInFlight += 1
            actions.append(
                .writeScratch(
                    ScratchWrite(
                        task: task, job: job, position: position, count: slots.count,
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

    private mutating func finish(_ task: CopyIndex, now: UInt64) {
        let list = tasks[task].waiters
        let named = tasks[task].jobs
        // The arrays inside a task are kept: a copy allocates nothing.
        tasks[task].isActive = false
        tasks[task].waiters = WaitList()
        activeTasks -= 1
        actions.append(.copyDone(task: task))
        forEachJob(named) { gate, job in
            gate.jobs[job].taskCount -= 1
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
        for task in CopyIndex.all where tasks[task].isActive {
            let list = tasks[task].waiters
            guard list.head >= 0 else { continue }
            tasks[task].waiters = WaitList()
            reconsider(list, now: now)
        }
        let hungry = starved
        starved = WaitList()
        reconsider(hungry, now: now)
    }
}
