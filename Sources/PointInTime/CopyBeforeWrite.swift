package import Tracking

/// Copy-before-write of one disk, as a state machine without I/O: guest writes and completions in,
/// actions out.
///
/// It lives on the disk's home ring. Guarantees, checked by walking every interleaving of small
/// cases:
/// - A guest write is let go only when no job that is whole still needs a cluster it touches.
/// - A cluster is copied at most once per job; writes to it meanwhile share the copy, and a copy
///   serves all jobs.
/// - Every write that waits passes exactly once, whatever fails: a failure breaks the job, never
///   the write.
package struct CopyBeforeWrite: Sendable, Hashable {
    /// Jobs that one disk can have at once: a mask of them fits 16 bits.
    package static let jobsMax = 16
    /// Copies in flight for one disk.
    package static let copiesMax = 32
    /// Clusters that one copy moves at most: 1 MiB, one large I/O.
    package static let clustersPerCopy = 64

    struct Job: Hashable {
        var isActive = false
        var isDetaching = false
        /// Ledger words are shared memory, not part of the value.
        var view: LedgerViewBox?
        var slotsUsed: UInt32 = 0
        var preserved = 0
        var zeros = 0
        var slotLimit: UInt32 = 0
        /// Slots below `slotsUsed` that hold nothing any more.
        var freeSlots = FreeSlots()
        var copyTimeoutNanoseconds: UInt64 = .max
        /// Copies in flight that name this job.
        var copyCount = 0
    }

    struct Copy: Hashable {
        var isActive = false
        var isReading = false
        var clusters = 0..<0
        /// Per cluster, the jobs that need it.
        var needs = [UInt16](repeating: 0, count: CopyBeforeWrite.clustersPerCopy)
        /// All jobs that the copy names.
        var jobs: UInt16 = 0
        var writesByJob = [Int](repeating: 0, count: CopyBeforeWrite.jobsMax)
        var writesInFlight = 0
        /// When the write for which it runs was admitted: a wait for a free copy counts as well.
        var startedAt: UInt64 = 0
        var waiters = WaitList()

        // What an idle one still holds from its last use has no meaning and is no part of its
        // value.
        static func == (left: Copy, right: Copy) -> Bool {
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

    struct Waiter: Hashable {
        var clusters = 0..<0
        /// When the write was admitted to wait.
        var waitingSince: UInt64 = 0
        var next: Int32 = -1
    }

    /// Changes in the order in which they came, linked through `Waiter.next`.
    struct WaitList: Hashable {
        var head: Int32 = -1
        var tail: Int32 = -1
    }

    var jobs = [Job](repeating: Job(), count: jobsMax)
    var copies = [Copy](repeating: Copy(), count: copiesMax)
    var activeCopies = 0
    /// By change; as long as the highest number that ever waited needs.
    var waiters: [Waiter] = []
    private let changeLimit: Int
    /// Writes that found no free copy.
    var starved = WaitList()
    var activeJobs: UInt16 = 0
    var actions: [CopyAction] = []
    private var nextActionIndex = 0

    /// `changeLimit`: changes have numbers below it.
    package init(changeLimit: Int) {
        self.changeLimit = changeLimit
        actions.reserveCapacity(256)
    }

    /// Whether any whole job needs clusters to be preserved.
    package var hasActiveJobs: Bool { activeJobs != 0 }

    /// Copies in flight.
    package var copiesInFlight: Int { activeCopies }

    /// Slots of scratch that hold something of the job.
    package func slotsUsed(job: JobIndex) -> UInt32 {
        jobs[job].slotsUsed - jobs[job].freeSlots.count
    }

    /// Clusters preserved for the job, and how many of them are all zeros.
    package func figures(job: JobIndex) -> (preserved: Int, zero: Int) {
        (jobs[job].preserved, jobs[job].zeros)
    }

    /// The clusters that a copy in flight moves.
    package func clusters(of copy: CopyIndex) -> Range<Int> { copies[copy].clusters }

    /// Whether a whole job still wants what a copy in flight reads or saves.
    package func isWanted(copy: CopyIndex) -> Bool { copies[copy].jobs & activeJobs != 0 }

    /// Takes the next action, in order, or nil.
    package mutating func nextAction() -> CopyAction? {
        if actions.isEmpty { return nil }
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
    /// `found` is what is in use already of a job that an earlier process has begun. Nil when there
    /// is no slot for it.
    package mutating func attach(
        _ view: LedgerView, slotLimit: UInt32, copyTimeoutNanoseconds: UInt64,
        found: LedgerUse? = nil
    ) -> JobIndex? {
        let free = JobIndex.all.first { job in
            !jobs[job].isActive && !jobs[job].isDetaching && jobs[job].view == nil
        }
        guard let free else { return nil }
        jobs[free] = Job(
            isActive: true, view: LedgerViewBox(view: view), slotLimit: slotLimit,
            copyTimeoutNanoseconds: copyTimeoutNanoseconds)
        if let found {
            jobs[free].slotsUsed = found.slotsUsed
            jobs[free].preserved = found.preserved
            jobs[free].zeros = found.zeros
            jobs[free].freeSlots = found.freeSlots
        }
        activeJobs |= free.mask
        return free
    }

    /// Ends a job: its ledger is closed, nothing more is copied for it, and `.jobDetached` follows
    /// when nothing is in flight.
    package mutating func detach(job: JobIndex, now: UInt64) {
        precondition(jobs[job].view != nil && !jobs[job].isDetaching)
        deactivate(job)
        jobs[job].isDetaching = true
        finishDetaching(job)
        passUnneeded(now: now)
    }

    /// Breaks a job for a reason found outside, a failed read of its scratch for example.
    package mutating func breakJob(_ job: JobIndex, cause: BreakCause, now: UInt64) {
        guard jobs[job].isActive else { return }
        deactivate(job)
        actions.append(.jobBroken(job: job, cause: cause))
        passUnneeded(now: now)
    }

    private mutating func deactivate(_ job: JobIndex) {
        jobs[job].view?.view.close()
        jobs[job].view?.view.settle()
        jobs[job].isActive = false
        activeJobs &= ~(job.mask)
    }

    mutating func finishDetaching(_ job: JobIndex) {
        guard jobs[job].isDetaching, jobs[job].copyCount == 0 else { return }
        jobs[job] = Job()
        actions.append(.jobDetached(job: job))
    }

    // MARK: Guest writes

    /// Asks whether a guest write, zero or discard of these clusters may be submitted.
    package mutating func admit(
        _ change: ChangeID, clusters: Range<Int>, now: UInt64
    ) -> Admission {
        guard activeJobs != 0 else { return .go }
        makeRoom(for: change.number)
        waiters[change.number] = Waiter(clusters: clusters, waitingSince: now)
        return place(change.number, now: now) ? .go : .waits
    }

    /// A thousand disks with jobs must not each pay for all changes that there could be.
    private mutating func makeRoom(for number: Int) {
        precondition(number < changeLimit, "a change beyond the limit")
        guard number >= waiters.count else { return }
        let count = min(changeLimit, max(64, number + 1, 2 * waiters.count))
        waiters.append(
            contentsOf: repeatElement(Waiter(), count: count - waiters.count))
    }

    /// Records that clusters are holes in the source, without reading them.
    ///
    /// Right only for clusters of which the caller has just learned it; those being copied are left
    /// to their copy.
    package mutating func noteHole(_ clusters: Range<Int>) {
        for cluster in clusters {
            let needed = need(of: cluster)
            guard needed != 0, copy(covering: cluster) == nil else { continue }
            publishZero(cluster, for: needed)
        }
        settle(activeJobs)
    }

    /// Ends the need for clusters that the job's client has released.
    ///
    /// Their slots are used again, those of copies in flight once these are complete. Guest writes
    /// that waited for nothing else go on.
    package mutating func releaseClusters(job: JobIndex, _ clusters: Range<Int>, now: UInt64) {
        guard jobs[job].isActive, let view = jobs[job].view?.view else { return }
        for cluster in clusters {
            switch view.release(cluster) {
            case .source, .released: break
            case .zero:
                jobs[job].preserved -= 1
                jobs[job].zeros -= 1
            case .slot(let slot):
                jobs[job].preserved -= 1
                jobs[job].freeSlots.add(slot)
            }
        }
        view.settle()
        passUnneeded(now: now)
    }

    /// Starts the copies a write needs and queues it behind one of them; true when it needs none.
    mutating func place(_ change: Int, now: UInt64) -> Bool {
        let clusters = waiters[change].clusters
        var waitFor: CopyIndex?
        var isStarved = false
        var cluster = clusters.lowerBound
        while cluster < clusters.upperBound {
            if need(of: cluster) == 0 {
                cluster += 1
            } else if let copy = copy(covering: cluster) {
                waitFor = waitFor ?? copy
                cluster = copies[copy].clusters.upperBound
            } else if let copy = start(
                from: cluster, to: clusters.upperBound, now: min(now, waiters[change].waitingSince))
            {
                waitFor = waitFor ?? copy
                cluster = copies[copy].clusters.upperBound
            } else {
                isStarved = true
                break
            }
        }
        if let waitFor {
            copies[waitFor].waiters = appending(change, to: copies[waitFor].waiters)
        } else if isStarved {
            starved = appending(change, to: starved)
        } else {
            return true
        }
        return false
    }

    private mutating func appending(_ change: Int, to list: WaitList) -> WaitList {
        waiters[change].next = -1
        if list.tail >= 0 { waiters[Int(list.tail)].next = Int32(change) }
        return WaitList(head: list.head < 0 ? Int32(change) : list.head, tail: Int32(change))
    }

    private mutating func start(from first: Int, to end: Int, now: UInt64) -> CopyIndex? {
        guard activeCopies < Self.copiesMax,
            let index = CopyIndex.all.first(where: { !copies[$0].isActive })
        else { return nil }
        var next = first
        var named: UInt16 = 0
        while next < min(end, first + Self.clustersPerCopy) {
            let needed = need(of: next)
            if needed == 0 || copy(covering: next) != nil { break }
            copies[index].needs[next - first] = needed
            named |= needed
            next += 1
        }
        copies[index].isActive = true
        copies[index].isReading = true
        copies[index].clusters = first..<next
        copies[index].jobs = named
        copies[index].startedAt = now
        activeCopies += 1
        forEachJob(named) { gate, job in gate.jobs[job].copyCount += 1 }
        actions.append(.readSource(copy: index, clusters: first..<next))
        return index
    }

    func need(of cluster: Int) -> UInt16 {
        var mask: UInt16 = 0
        var left = activeJobs
        while left != 0 {
            let job = JobIndex(left.trailingZeroBitCount)
            left &= left - 1
            if let view = jobs[job].view?.view, cluster < view.geometry.clusterCount,
                !view.isPreserved(cluster)
            {
                mask |= job.mask
            }
        }
        return mask
    }

    func copy(covering cluster: Int) -> CopyIndex? {
        guard activeCopies > 0 else { return nil }
        return copies.firstIndex { $0.isActive && $0.clusters.contains(cluster) }
            .map(CopyIndex.init)
    }

    mutating func forEachJob(
        _ mask: UInt16, _ body: (inout CopyBeforeWrite, JobIndex) -> Void
    ) {
        var left = mask
        while left != 0 {
            body(&self, JobIndex(left.trailingZeroBitCount))
            left &= left - 1
        }
    }
}

/// Makes a ledger view part of a hashable value by what it is, not by what it points to.
struct LedgerViewBox: Hashable {
    let view: LedgerView
    static func == (lhs: LedgerViewBox, rhs: LedgerViewBox) -> Bool {
        lhs.view.geometry == rhs.view.geometry
    }
    func hash(into hasher: inout Hasher) { hasher.combine(view.geometry) }
}
