import BoundedCalls
import ServerInterface

/// Another server takes this one's place: what is under way ends first, then everything is left as
/// a kill at a quiet moment would leave it.
extension JobManager {
    /// How long calls that are under way may take to end.
    private static let callsTime = Duration.seconds(10)

    /// Begins and changes nothing from now on, and waits for what is under way; callers are told to
    /// try again in a moment.
    ///
    /// Throws when it does not end, or when a job could not go on with the next server: then
    /// everything is as it was.
    package func prepareToLeave() async throws(ControlError) {
        guard !isStopping else { throw .serverStopping }
        guard !isLeaving else { throw .serverRestarting }
        isLeaving = true
        do throws(ControlError) {
            try await awaitCalls()
            try checkJobsGoOn()
            pausePushes()
        } catch {
            isLeaving = false
            throw error
        }
    }

    private func awaitCalls() async throws(ControlError) {
        let end = ContinuousClock.now + Self.callsTime
        while let obstacle {
            guard !isStopping else { throw .serverStopping }
            guard ContinuousClock.now < end else { throw .cannotLeave(obstacle) }
            try? await Task.sleep(for: .milliseconds(5))
        }
    }

    /// What is under way.
    private var obstacle: String? {
        if let id = startingPushes.first { return "push job '\(id)' is being started" }
        if let job = jobs.values.first(where: { $0.state.isChanging }) {
            return "job '\(job.id)' is \(job.state.name)"
        }
        if let name = reserved.keys.first ?? checkpointQueues.keys.first {
            return "domain '\(name)' is being changed"
        }
        if let name = attachingExports.first { return "export '\(name)' is being changed" }
        return nil
    }

    // A broken job has failed whatever happens.
    private func checkJobsGoOn() throws(ControlError) {
        for job in jobs.values {
            guard case .running = job.state, job.record.resume == nil else { continue }
            let reason =
                job.record.notLasting
                ?? "what it needs for that is not kept in memory (/dev/shm may be missing or full)"
            throw .cannotLeave(
                "job '\(job.id)' cannot outlive this server, as \(reason): end it first")
        }
    }

    /// Nothing came of it: this server goes on.
    package func stay() {
        isLeaving = false
        keepOpening()
        resumePushes()
    }

    /// This server cannot begin: jobs that are still waiting for their disks are the next server's.
    package func abandon() { isAbandoned = true }

    /// Everything has been left: nothing is done any more.
    package func hasLeft() {
        isStopping = true
        retries?.cancel()
        for job in jobs.values { job.expiryTask?.cancel() }
        for opening in openings.values { opening.cancel() }
        storage.stop()
        pump?.cancel()
        events.close()
    }

    /// Throws when nothing may be begun or changed now.
    func checkTakesChanges() throws(ControlError) {
        if isStopping { throw .serverStopping }
        if isLeaving { throw .serverRestarting }
    }
}

extension ControlError {
    /// This server goes on, and the other has to wait or be started differently.
    static func cannotLeave(_ obstacle: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "cannot-leave", status: 409, detail: obstacle)
    }
}
