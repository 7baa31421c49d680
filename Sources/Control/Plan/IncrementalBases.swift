/// The checkpoints that incremental backups of a domain may start from, when a job is planned.
package struct IncrementalBases: Sendable, Hashable {
    /// No checkpoint at all.
    package static let none = IncrementalBases()

    /// Names of the domain's checkpoints.
    package var known: Set<String>
    /// By target: the checkpoints that the disk's chain holds.
    package var usable: [String: Set<String>]
    /// By target: why the chain may hold fewer than are known, when there is more to say.
    package var problems: [String: String]
    /// By checkpoint: why it is not a base yet, or no longer one.
    package var unready: [String: String]
    /// A disk that cannot start from its checkpoint is backed up in full, instead of refusing the
    /// job.
    package var fallsBackToFull: Bool

    package init(
        known: Set<String> = [], usable: [String: Set<String>] = [:],
        problems: [String: String] = [:], unready: [String: String] = [:],
        fallsBackToFull: Bool = false
    ) {
        self.unready = unready
        self.known = known
        self.usable = usable
        self.problems = problems
        self.fallsBackToFull = fallsBackToFull
    }

    /// Says why a disk is backed up in full although `checkpoint` was asked for; nil when it can
    /// start from there.
    ///
    /// - Throws: 103 for a checkpoint that is not known; 109 for one whose job has not ended well
    ///   and for one that the disk's chain does not hold, unless disks fall back to full backups.
    func fallbackReason(
        from checkpoint: String, disk target: String
    ) throws(ControlError) -> String? {
        guard known.contains(checkpoint) else {
            throw .checkpointNotFound(checkpoint, disk: target)
        }
        if let reason = unready[checkpoint] {
            guard fallsBackToFull else {
                throw .checkpointUnready(checkpoint, disk: target, reason: reason)
            }
            return "checkpoint '\(checkpoint)' is no base: \(reason)"
        }
        guard usable[target]?.contains(checkpoint) != true else { return nil }
        guard fallsBackToFull else { throw .checkpointUnusable(checkpoint, disk: target) }
        let reason = "the disk's chain does not hold checkpoint '\(checkpoint)'"
        return problems[target].map { "\(reason): \($0)" } ?? reason
    }
}
