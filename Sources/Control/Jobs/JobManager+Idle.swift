import ServerInterface

/// How long a job has been without a client.
struct IdleTime: Sendable {
    /// When it was first seen without one; nil while it has one.
    var since: ContinuousClock.Instant?
    var isTold = false
    /// What clients had read then: one may come and go between two looks.
    var bytesRead: UInt64 = 0
}

extension JobManager {
    /// The longest time after which a job without a client can be told of, in seconds: 30 days.
    package static let idleAfterSecondsMax = 2_592_000
    /// The time that is taken when nobody says another, in seconds.
    package static let idleAfterSecondsDefault = 1800
    /// Between two looks at most, in seconds.
    private static let lookSecondsMax = 10.0

    /// Tells of jobs that nobody reads: a backup program may have gone without ending its job,
    /// whose scratch grows meanwhile.
    func watchForIdleJobs() {
        guard let limit = settings.idleAfterSeconds, limit > 0 else { return }
        let pause = min(Double(limit) / 4, Self.lookSecondsMax)
        idleWatch = Task { [weak self] in
            while !Task.isCancelled {
                try? await Task.sleep(for: .seconds(pause))
                await self?.lookForIdleJobs(limitSeconds: limit)
            }
        }
    }

    private func lookForIdleJobs(limitSeconds: Int) async {
        for id in Array(jobs.keys) {
            await refresh(id)
            guard let job = jobs[id], case .running = job.state, let report = job.lastReport
            else { continue }
            let bytesRead = report.disks.reduce(0) { $0 &+ $1.bytesRead }
            guard report.clientCount == 0, bytesRead == job.idle.bytesRead || job.idle.since == nil
            else {
                jobs[id]?.idle = IdleTime()
                continue
            }
            let now = ContinuousClock.now
            let since = job.idle.since ?? now
            jobs[id]?.idle.since = since
            jobs[id]?.idle.bytesRead = bytesRead
            guard !job.idle.isTold, now - since >= .seconds(limitSeconds) else { continue }
            jobs[id]?.idle.isTold = true
            events.append(
                ControlEvent(
                    .jobIdle, domain: job.domain, id: id,
                    message:
                        "no client for \(limitSeconds) s: end the job if its backup program has "
                        + "gone, its scratch grows with every first write"))
        }
    }
}

extension Job {
    /// How long it has had no client, as far as anybody has looked, in seconds.
    var idleSeconds: Double? {
        idle.since.map { since in
            let (seconds, attoseconds) = (ContinuousClock.now - since).components
            return Double(seconds) + Double(attoseconds) / 1e18
        }
    }
}
