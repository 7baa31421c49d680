/// The state of one backup job: a pure state machine.
///
/// Every event is answered with the next state or with a refusal that changes nothing. `ended` is
/// final.
package enum JobState: Sendable, Hashable {
    /// The server below is fixing the instant; no export exists yet.
    case starting
    /// Exports are served.
    case running
    /// The job broke by itself; its exports answer errors until somebody ends it.
    case broken(reason: String)
    /// The exports are being withdrawn.
    ///
    /// `brokenReason` is kept from before.
    case ending(cause: EndCause, brokenReason: String?)
    /// Nothing of the job is left but its outcome.
    case ended(JobOutcome)

    /// What happens to a job.
    package enum Event: Sendable, Hashable {
        /// The engine has begun the job.
        case started
        /// The engine refused to begin the job.
        case refused(reason: String)
        /// The engine reports that the job broke.
        case broke(reason: String)
        /// Somebody ends the job.
        case endRequested(EndCause)
        /// The engine could not end the job; it is still there.
        case endRefused
        /// The engine has ended the job.
        ///
        /// `brokenReason` is from its last report.
        case engineEnded(brokenReason: String?)
    }

    /// An event that does not fit the state.
    package struct Refusal: Error, Sendable, Hashable {
        package let state: JobState
        package let event: Event
    }

    /// The state after `event`; throws when the event does not fit, and then nothing has changed.
    package func after(_ event: Event) throws(Refusal) -> JobState {
        switch self {
        case .starting: try afterStarting(event)
        case .running: try afterRunning(event)
        case .broken(let reason): try afterBroken(reason, event)
        case .ending(let cause, let reason): try afterEnding(cause, reason, event)
        case .ended: try refuse(event)
        }
    }

    private func afterStarting(_ event: Event) throws(Refusal) -> JobState {
        switch event {
        case .started: .running
        case .refused(let reason): .ended(.failed(reason: reason))
        // The engine's event may overtake its own answer to the begin call.
        case .broke(let reason): .broken(reason: reason)
        case .endRequested, .endRefused, .engineEnded: try refuse(event)
        }
    }

    private func afterRunning(_ event: Event) throws(Refusal) -> JobState {
        switch event {
        case .broke(let reason): .broken(reason: reason)
        case .endRequested(let cause): .ending(cause: cause, brokenReason: nil)
        case .started, .refused, .endRefused, .engineEnded: try refuse(event)
        }
    }

    private func afterBroken(_ reason: String, _ event: Event) throws(Refusal) -> JobState {
        switch event {
        // The first reason is kept: later ones are its consequences.
        case .broke, .started: self
        case .endRequested(let cause): .ending(cause: cause, brokenReason: reason)
        case .refused(let refusal): .ended(.failed(reason: refusal))
        case .endRefused, .engineEnded: try refuse(event)
        }
    }

    private func afterEnding(
        _ cause: EndCause, _ reason: String?, _ event: Event
    ) throws(Refusal) -> JobState {
        switch event {
        case .broke(let later): .ending(cause: cause, brokenReason: reason ?? later)
        case .endRefused: reason.map { .broken(reason: $0) } ?? .running
        case .engineEnded(let last): .ended(cause.outcome(brokenReason: reason ?? last))
        case .started, .refused, .endRequested: try refuse(event)
        }
    }

    private func refuse(_ event: Event) throws(Refusal) -> JobState {
        throw Refusal(state: self, event: event)
    }

    /// Why the job broke, while it is known and the job has not ended.
    package var brokenReason: String? {
        switch self {
        case .broken(let reason): reason
        case .ending(_, let reason): reason
        case .starting, .running, .ended: nil
        }
    }

    /// One word for lists and programs: `starting`, `running`, `broken`, `ending`, `ended`.
    package var name: String {
        switch self {
        case .starting: "starting"
        case .running: "running"
        case .broken: "broken"
        case .ending: "ending"
        case .ended: "ended"
        }
    }
}

/// Who ended a job, and with which verdict.
package enum EndCause: Sendable, Hashable {
    /// `backup-end`: the backup is good.
    case success
    /// `backup-end --failed`: the backup is worthless.
    case failure
    /// `domjobabort`: libvirt's way to end a pull job.
    case abort
    /// The job's time to live is over.
    ///
    /// Seconds as given at its begin.
    case expired(seconds: UInt64)
    /// The server stops.
    case shutdown
    /// The server has written everything: a push is good.
    case pushed
    /// The server could not write it.
    case pushFailed(reason: String)
    /// `domjobabort` of a push: what has been written is worthless.
    case pushAborted

    /// The outcome of a job ended so; a job that broke has failed whatever the verdict.
    package func outcome(brokenReason: String?) -> JobOutcome {
        if let brokenReason { return .failed(reason: brokenReason) }
        switch self {
        case .success: return .completed(note: nil)
        case .failure: return .failed(reason: "the client reported that the backup failed")
        case .abort: return .completed(note: "Operation canceled")
        case .expired(let seconds):
            return .failed(reason: "the job's time to live of \(seconds) s is over")
        case .shutdown: return .cancelled(reason: "the server was stopped while the job ran")
        case .pushed: return .completed(note: nil)
        case .pushFailed(let reason): return .failed(reason: reason)
        case .pushAborted: return .abandoned(reason: "Operation canceled")
        }
    }
}

/// How a job ended.
package enum JobOutcome: Sendable, Hashable {
    /// Ended in good order.
    ///
    /// An aborted pull job is completed too, with libvirt's note.
    case completed(note: String?)
    /// The job broke, was cut off, or its client called it worthless.
    case failed(reason: String)
    /// The server ended the job for reasons of its own.
    case cancelled(reason: String)
    /// Somebody has called a push off: it has failed, and libvirt has a type of its own for that.
    case abandoned(reason: String)

    /// Libvirt's word: `Completed`, `Failed`, `Cancelled`.
    package var jobType: String {
        switch self {
        case .completed: "Completed"
        case .failed: "Failed"
        case .cancelled, .abandoned: "Cancelled"
        }
    }

    /// Whether the backup is good, and the checkpoint made with it a base.
    ///
    /// An abort is how libvirt's tools end good backups, so it counts as one.
    package var isGood: Bool {
        if case .completed = self { true } else { false }
    }

    /// One word for figures and programs: `completed`, `aborted`, `failed`, `cancelled`.
    package var label: String {
        switch self {
        case .completed(note: nil): "completed"
        case .completed: "aborted"
        case .failed, .abandoned: "failed"
        case .cancelled: "cancelled"
        }
    }

    /// Libvirt's error message of a finished job, or nil.
    package var message: String? {
        switch self {
        case .completed(let note): note
        case .failed(let reason), .cancelled(let reason), .abandoned(let reason): reason
        }
    }
}
