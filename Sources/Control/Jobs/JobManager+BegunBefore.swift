import Foundation

/// A begin whose caller chose the job's id can be asked for again.
///
/// A caller whose connection was lost before the answer, as when the server is killed, does not
/// know what has become of its call. With an id of its own it asks again until there is an answer.
extension JobManager {
    /// A begin waits so long for a job of its id that is being begun, or comes back after a
    /// restart, in seconds.
    private static let begunBeforeSeconds = 30

    /// The id that a caller has chosen, in the form that all ids have.
    static func jobID(_ text: String) throws(ControlError) -> String {
        guard let id = UUID(uuidString: text) else {
            throw .invalidArgument(what: "job id '\(text)'", detail: "it must be a UUID")
        }
        return id.uuidString.lowercased()
    }

    /// The job that was begun under an id before; nil when nothing is known of one.
    ///
    /// Throws when the job does not run any more, or is another domain's.
    func begun(_ id: String, domain: String) async throws(ControlError) -> BegunJob? {
        let end = ContinuousClock.now + .seconds(Self.begunBeforeSeconds)
        while let job = jobs[id] {
            guard job.domain == domain else { throw .jobIDTaken(id, domain: job.domain) }
            switch job.state {
            case .running:
                return job.answer
            case .starting where ContinuousClock.now < end:
                try? await Task.sleep(for: .milliseconds(20))
            case .starting, .broken, .ending, .ended:
                throw .jobNotReady(id: id, state: job.state.name)
            }
        }
        for (name, history) in history {
            guard let ended = history.jobs.first(where: { $0.id == id }) else { continue }
            throw .jobIDUsed(id, domain: name, ended)
        }
        return nil
    }
}

extension ControlError {
    fileprivate static func jobIDTaken(_ id: String, domain: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "job-id-used", status: 409,
            detail: "job '\(id)' is one of domain '\(domain)': choose another id")
    }

    fileprivate static func jobIDUsed(
        _ id: String, domain: String, _ ended: JobInfo
    ) -> ControlError {
        let reason = ended.errorMessage.map { ": \($0)" } ?? ""
        return ControlError(
            .operationInvalid, code: "job-id-used", status: 409,
            detail: "job '\(id)' of domain '\(domain)' has ended as"
                + " \(ended.outcome ?? "failed")\(reason); choose another id to begin one")
    }
}
