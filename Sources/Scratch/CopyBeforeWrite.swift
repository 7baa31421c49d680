/// Copy-before-write of one disk, as a state machine without I/O: guest writes and completions in,
/// actions out.
///
/// It lives on the disk's home ring. Guarantees, checked by walking every interleaving of small
/// cases:
/// - A guest write is let go only when no job that is whole still needs a cluster it touches.
/// - A cluster is copied at most once per job; writes to it meanwhile share the copy, and a copy
///   serves all jobs.
/// - Every held write is released exactly once, whatever fails: a failure breaks the job, never the
///   write.
package struct CopyBeforeWrite: Sendable, Hashable {
    /// Jobs that one disk can have at once: a mask of them fits 16 bits.
    package static let jobsMax = 16
    /// Copies in flight for one disk.
    package static let tasksMax = 32
    /// Clusters that one copy moves at most: 1 MiB, one large I/O.
    package static let clustersPerTask = 16

    private struct Job: Hashable {
        var isActive = false
        var isDetaching = false
        /// Ledger words are shared memory, not part of the value.
        var view: LedgerViewBox?
        var slotsUsed: UInt32 = 0
        var preserved = 0
        var zeros = 0
        var slotLimit: UInt32 = 0
        var holdLimitNanoseconds: UInt64 = .max
        /// Tasks in flight that name this job.
        var taskCount = 0
    }

    private struct Task: Hashable {
        var isActive = false
        var isReading = false
        var clusters = 0..<0
        /// Per cluster, the jobs that need it.
        var needs = [UInt16](repeating: 0, count: CopyBeforeWrite.clustersPerTask)
        /// All jobs that the task names.
        var jobs: UInt16 = 0
        var writesByJob = [Int](repeating: 0, count: CopyBeforeWrite.jobsMax)
        var writesInFlight = 0
        /// When the write for which it runs was admitted: a wait for a free task counts as well.
        var startedAt: UInt64 = 0
        var waiters = WaitList()

        // What an idle task still holds from its last copy has no meaning and is no part of its
        // value.
        static func == (left: Task, right: Task) -> Bool {
            guard left.isActive, right.isActive else { return left.isActive == right.isActive }
            return left.isReading == right.isReading && left.clusters == right.clusters
                && left.liveNeeds == right.liveNeeds && left.jobs == right.jobs
                && left.writesByJob == right.writesByJob && left.startedAt == right.startedAt
                && left.waiters == right.waiters
        }

        func hash(into hasher: inout Hasher) {
            hasher.combine(isActive)
            guard isActive else { return }
            hasher.combine(isReading)
            hasher.combine(clusters)
            hasher.combine(liveNeeds)
            hasher.combine(jobs)
            hasher.combine(writesByJob)
            hasher.combine(startedAt)
            hasher.combine(waiters)
        }

        private var liveNeeds: ArraySlice<UInt16> { needs.prefix(clusters.count) }
    }

    private struct Waiter: Hashable {
        var clusters = 0..<0
        /// When the write was admitted to wait.
        var heldSince: UInt64 = 0
        var next: Int32 = -1
    }

    /// Tokens in the order in which they came, linked through `Waiter.next`.
    private struct WaitList: Hashable {
        var head: Int32 = -1
        var tail: Int32 = -1
    }

    private var jobs = [Job](repeating: Job(), count: jobsMax)
    private var tasks = [Task](repeating: Task(), count: tasksMax)
    private var activeTasks = 0
    private var waiters: [Waiter]
    /// Writes that found no free task.
    private var starved = WaitList()
    private var activeJobs: UInt16 = 0
    private var actions: [CopyAction] = []
    private var nextActionIndex = 0

    /// `tokenLimit`: guest writes are named by tokens below it.
    package init(tokenLimit: Int) {
        waiters = [Waiter](repeating: Waiter(), count: tokenLimit)
        actions.reserveCapacity(256)
    }

    /// Whether any whole job needs clusters to be preserved.
    package var hasActiveJobs: Bool { activeJobs != 0 }

    /// Copies in flight.
    package var copiesInFlight: Int { activeTasks }

    /// Slots of scratch that the job has used.
    package func slotsUsed(job: Int) -> UInt32 { jobs[job].slotsUsed }

    /// Clusters preserved for the job, and how many of them are all zeros.
    package func figures(job: Int) -> (preserved: Int, zero: Int) {
        (jobs[job].preserved, jobs[job].zeros)
    }

    /// The clusters that a copy in flight moves.
    package func clusters(of task: Int) -> Range<Int> { tasks[task].clusters }

    /// Whether an action waits to be performed.
    package var hasActions: Bool { nextActionIndex < actions.count }

    /// Takes the next action, in order, or nil.
    package mutating func nextAction() -> CopyAction? {
        if nextActionIndex == actions.count {
            actions.removeAll(keepingCapacity: true)
            nextActionIndex = 0
            return nil
        }
        nextActionIndex += 1
        return actions[nextActionIndex - 1]
    }

    // MARK: Jobs

    /// Adds a job whose instant is now: no guest write may be in flight.
    ///
    /// Nil when there is no slot for it.
    package mutating func attach(
        _ view: LedgerView, slotLimit: UInt32, holdLimitNanoseconds: UInt64
    ) -> Int? {
        let free = jobs.firstIndex { !$0.isActive && !$0.isDetaching && $0.view == nil }
        guard let free else { return nil }
        jobs[free] = Job(
            isActive: true, view: LedgerViewBox(view: view), slotLimit: slotLimit,
            holdLimitNanoseconds: holdLimitNanoseconds)
        activeJobs |= 1 << UInt16(free)
        return free
    }

    /// Ends a job: its ledger is closed, nothing more is copied for it, and `.jobDetached` follows
    /// when nothing is in flight.
    package mutating func detach(job: Int, now: UInt64) {
        precondition(jobs[job].view != nil && !jobs[job].isDetaching)
        deactivate(job)
        jobs[job].isDetaching = true
        finishDetaching(job)
        releaseUnneeded(now: now)
    }

    /// Breaks a job for a reason found outside, a failed read of its scratch for example.
    package mutating func breakJob(_ job: Int, cause: BreakCause, now: UInt64) {
        guard jobs[job].isActive else { return }
        deactivate(job)
        actions.append(.jobBroken(job: job, cause: cause))
        releaseUnneeded(now: now)
    }

    private mutating func deactivate(_ job: Int) {
        jobs[job].view?.view.close()
        jobs[job].view?.view.settle()
        jobs[job].isActive = false
        activeJobs &= ~(1 << UInt16(job))
    }

    private mutating func finishDetaching(_ job: Int) {
        guard jobs[job].isDetaching, jobs[job].taskCount == 0 else { return }
        jobs[job] = Job()
        actions.append(.jobDetached(job: job))
    }

    // MARK: Guest writes

    /// Asks whether a guest write, zero or discard of these clusters may be submitted.
    package mutating func admit(token: Int, clusters: Range<Int>, now: UInt64) -> Admission {
        guard activeJobs != 0 else { return .go }
        waiters[token] = Waiter(clusters: clusters, heldSince: now)
        return place(token, now: now) ? .go : .held
    }

    /// Records that clusters are holes in the source, without reading them.
    ///
    /// Right only for clusters of which the caller has just learned it; those being copied are left
    /// to their copy.
    package mutating func noteHole(_ clusters: Range<Int>) {
        for cluster in clusters {
            let needed = need(of: cluster)
            guard needed != 0, task(covering: cluster) == nil else { continue }
            publishZero(cluster, for: needed)
        }
        settle(activeJobs)
    }

    /// Starts the copies a write needs and queues it behind one of them; true when it needs none.
    private mutating func place(_ token: Int, now: UInt64) -> Bool {
        let clusters = waiters[token].clusters
        var waitFor: Int?
        var isStarved = false
        var cluster = clusters.lowerBound
        while cluster < clusters.upperBound {
            if need(of: cluster) == 0 {
                cluster += 1
            } else if let task = task(covering: cluster) {
                waitFor = waitFor ?? task
                cluster = tasks[task].clusters.upperBound
            } else if let task = start(
                from: cluster, to: clusters.upperBound, now: min(now, waiters[token].heldSince))
            {
                waitFor = waitFor ?? task
                cluster = tasks[task].clusters.upperBound
            } else {
                isStarved = true
                break
            }
        }
        if let waitFor {
            tasks[waitFor].waiters = appending(token, to: tasks[waitFor].waiters)
        } else if isStarved {
            starved = appending(token, to: starved)
        } else {
            return true
        }
        return false
    }

    private mutating func appending(_ token: Int, to list: WaitList) -> WaitList {
        waiters[token].next = -1
        if list.tail >= 0 { waiters[Int(list.tail)].next = Int32(token) }
        return WaitList(head: list.head < 0 ? Int32(token) : list.head, tail: Int32(token))
    }

    private mutating func start(from first: Int, to end: Int, now: UInt64) -> Int? {
        guard activeTasks < Self.tasksMax,
            let index = tasks.firstIndex(where: { !$0.isActive })
        else { return nil }
        var next = first
        var named: UInt16 = 0
        while next < min(end, first + Self.clustersPerTask) {
            let needed = need(of: next)
            if needed == 0 || task(covering: next) != nil { break }
            tasks[index].needs[next - first] = needed
            named |= needed
            next += 1
        }
        tasks[index].isActive = true
        tasks[index].isReading = true
        tasks[index].clusters = first..<next
        tasks[index].jobs = named
        tasks[index].startedAt = now
        activeTasks += 1
        forEachJob(named) { gate, job in gate.jobs[job].taskCount += 1 }
        actions.append(.readSource(task: index, clusters: first..<next))
        return index
    }

    private func need(of cluster: Int) -> UInt16 {
        var mask: UInt16 = 0
        var left = activeJobs
        while left != 0 {
            let job = left.trailingZeroBitCount
            left &= left - 1
            if let view = jobs[job].view?.view, cluster < view.geometry.clusterCount,
                !view.isPreserved(cluster)
            {
                mask |= 1 << UInt16(job)
            }
        }
        return mask
    }

    private func task(covering cluster: Int) -> Int? {
        guard activeTasks > 0 else { return nil }
        return tasks.firstIndex { $0.isActive && $0.clusters.contains(cluster) }
    }

    private mutating func forEachJob(
        _ mask: UInt16, _ body: (inout CopyBeforeWrite, Int) -> Void
    ) {
        var left = mask
        while left != 0 {
            body(&self, left.trailingZeroBitCount)
            left &= left - 1
        }
    }
}

// MARK: Completions

extension CopyBeforeWrite {
    /// The task's clusters are in its buffer, or could not be read.
    ///
    /// `zeroClusters` has a bit for each cluster, counted from the task's first, that is all zeros.
    package mutating func readFinished(
        task: Int, errno: Int32?, zeroClusters: UInt32, now: UInt64
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
        precondition(tasks[task].writesByJob[write.job] > 0)
        tasks[task].writesByJob[write.job] -= 1
        tasks[task].writesInFlight -= 1
        if let errno {
            breakJob(write.job, cause: .scratchWrite(errno: errno), now: now)
        } else if jobs[write.job].isActive, let view = jobs[write.job].view?.view {
            for index in 0..<write.count {
                view.publish(
                    tasks[task].clusters.lowerBound + write.position + index,
                    .slot(write.slot + UInt32(index)))
            }
            jobs[write.job].preserved += write.count
            view.settle()
        }
        if tasks[task].writesInFlight == 0, !tasks[task].isReading { finish(task, now: now) }
    }

    /// Breaks every job that has kept a guest write waiting for longer than it allows.
    package mutating func expire(now: UInt64) {
        guard activeTasks > 0 else { return }
        for task in tasks.indices where tasks[task].isActive {
            let age = now - min(now, tasks[task].startedAt)
            forEachJob(tasks[task].jobs & activeJobs) { gate, job in
                let limit = gate.jobs[job].holdLimitNanoseconds
                let isWaitedFor =
                    gate.tasks[task].isReading || gate.tasks[task].writesByJob[job] > 0
                if isWaitedFor, age > limit { gate.breakForHolding(job, now: now) }
            }
        }
        forEachJob(overdueForStarved(now: now)) { gate, job in
            gate.breakForHolding(job, now: now)
        }
    }

    private mutating func breakForHolding(_ job: Int, now: UInt64) {
        let limit = jobs[job].holdLimitNanoseconds
        breakJob(job, cause: .holdLimit(milliseconds: limit / 1_000_000), now: now)
    }

    /// Jobs that keep a write without a task waiting for longer than they allow.
    private func overdueForStarved(now: UInt64) -> UInt16 {
        var overdue: UInt16 = 0
        var token = Int(starved.head)
        while token >= 0 {
            let age = now - min(now, waiters[token].heldSince)
            let late = (0..<Self.jobsMax).reduce(into: UInt16(0)) { mask, job in
                if age > jobs[job].holdLimitNanoseconds { mask |= 1 << UInt16(job) }
            }
            if late & activeJobs & ~overdue != 0 {
                for cluster in waiters[token].clusters { overdue |= need(of: cluster) & late }
            }
            token = Int(waiters[token].next)
        }
        return overdue
    }

    private mutating func preserve(
        _ task: Int, for job: Int, zeroClusters: UInt32, now: UInt64
    ) {
        let clusters = tasks[task].clusters
        var position = 0
        while position < clusters.count {
            guard tasks[task].needs[position] >> UInt16(job) & 1 == 1 else {
                position += 1
                continue
            }
            if zeroClusters >> UInt32(position) & 1 == 1 {
                publishZero(clusters.lowerBound + position, for: 1 << UInt16(job))
                position += 1
                continue
            }
            var end = position + 1
            while end < clusters.count, tasks[task].needs[end] >> UInt16(job) & 1 == 1,
                zeroClusters >> UInt32(end) & 1 == 0
            { end += 1 }
            guard write(task, job, position..<end, now: now) else { return }
            position = end
        }
    }

    private mutating func write(
        _ task: Int, _ job: Int, _ positions: Range<Int>, now: UInt64
    ) -> Bool {
        let slot = jobs[job].slotsUsed
        guard UInt64(slot) + UInt64(positions.count) <= UInt64(jobs[job].slotLimit) else {
            breakJob(job, cause: .scratchFull, now: now)
            return false
        }
        jobs[job].slotsUsed += UInt32(positions.count)
        tasks[task].writesByJob[job] += 1
        tasks[task].writesInFlight += 1
        actions.append(
            .writeScratch(
                ScratchWrite(
                    task: task, job: job, position: positions.lowerBound,
                    count: positions.count, slot: slot)))
        return true
    }

    private mutating func publishZero(_ cluster: Int, for mask: UInt16) {
        forEachJob(mask) { gate, job in
            gate.jobs[job].view?.view.publish(cluster, .zero)
            gate.jobs[job].preserved += 1
            gate.jobs[job].zeros += 1
        }
    }

    private mutating func settle(_ mask: UInt16) {
        forEachJob(mask) { gate, job in gate.jobs[job].view?.view.settle() }
    }

    private mutating func finish(_ task: Int, now: UInt64) {
        let list = tasks[task].waiters
        let named = tasks[task].jobs
        // The arrays inside a task are kept: a copy allocates nothing.
        tasks[task].isActive = false
        tasks[task].waiters = WaitList()
        activeTasks -= 1
        forEachJob(named) { gate, job in
            gate.jobs[job].taskCount -= 1
            gate.finishDetaching(job)
        }
        reconsider(list, now: now)
        let hungry = starved
        starved = WaitList()
        reconsider(hungry, now: now)
    }

    /// Looks at waiting writes again: those that need nothing more are released, the others queue
    /// anew.
    private mutating func reconsider(_ list: WaitList, now: UInt64) {
        var token = list.head
        while token >= 0 {
            let next = waiters[Int(token)].next
            if place(Int(token), now: now) { actions.append(.release(token: Int(token))) }
            token = next
        }
    }

    /// After a job stopped needing anything: releases the writes that only its copies held.
    private mutating func releaseUnneeded(now: UInt64) {
        for task in tasks.indices where tasks[task].isActive {
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

/// Makes a ledger view part of a hashable value by what it is, not by what it points to.
private struct LedgerViewBox: Hashable {
    let view: LedgerView
    static func == (lhs: LedgerViewBox, rhs: LedgerViewBox) -> Bool {
        lhs.view.geometry == rhs.view.geometry
    }
    func hash(into hasher: inout Hasher) { hasher.combine(view.geometry) }
}
