package import PointInTime

/// Jobs and their copies: what reads of the source, writes to scratch and clients report.
extension DiskChanges {
    /// The clusters of a copy are in its buffer, or could not be read.
    ///
    /// `zeroClusters` has a bit for each cluster, counted from the copy's first, that is all zeros.
    package mutating func sourceRead(
        _ copy: CopyIndex, errno: Int32?, zeroClusters: UInt64, now: UInt64
    ) {
        copies.readFinished(copy: copy, errno: errno, zeroClusters: zeroClusters, now: now)
    }

    /// A write to scratch is complete, or has failed.
    package mutating func scratchWritten(_ write: ScratchWrite, errno: Int32?, now: UInt64) {
        copies.scratchWriteFinished(write, errno: errno, now: now)
    }

    /// Ends a job; `.jobDetached` follows.
    package mutating func detach(_ job: JobIndex, now: UInt64) { copies.detach(job: job, now: now) }

    /// Breaks a job, unless it is broken or ends.
    package mutating func breakJob(_ job: JobIndex, _ cause: BreakCause, now: UInt64) {
        copies.breakJob(job, cause: cause, now: now)
    }

    /// A client of the job has released clusters.
    package mutating func releaseClusters(_ clusters: Range<Int>, of job: JobIndex, now: UInt64) {
        copies.releaseClusters(job: job, clusters, now: now)
    }

    /// Clusters were found to be holes just now: jobs that need them keep zeros, without a copy.
    package mutating func noteHole(_ clusters: Range<Int>) { copies.noteHole(clusters) }

    /// Breaks the jobs that have kept a change waiting for longer than they allow.
    package mutating func expire(now: UInt64) { copies.expire(now: now) }

    // MARK: Looking

    // Asked here and not of `copies`, which another module could only copy first, arrays and all.

    /// Whether any whole job needs clusters to be preserved.
    package var hasActiveJobs: Bool { copies.hasActiveJobs }

    /// Copies in flight.
    package var copiesInFlight: Int { copies.copiesInFlight }

    /// The clusters that a copy in flight moves.
    package func clusters(of copy: CopyIndex) -> Range<Int> { copies.clusters(of: copy) }

    /// Whether a whole job still wants what a copy in flight reads or saves.
    package func isWanted(_ copy: CopyIndex) -> Bool { copies.isWanted(copy: copy) }

    /// Slots of scratch that hold something of the job.
    package func slotsUsed(by job: JobIndex) -> UInt32 { copies.slotsUsed(job: job) }

    /// Clusters preserved for the job, and how many of them are all zeros.
    package func figures(of job: JobIndex) -> (preserved: Int, zero: Int) {
        copies.figures(job: job)
    }
}
