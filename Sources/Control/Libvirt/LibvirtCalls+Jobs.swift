import LibvirtProtocol
import ServerInterface

/// How far jobs are, and their end.
///
/// libvirt has one job of a domain, without a name. Here it is the newest one that the connection
/// has begun, or else the newest of the domain: so each of two tools that work at once ends its
/// own. Of jobs that have ended ``BegunJobs`` says which one is meant.
extension LibvirtCalls {
    /// Flags of a job's figures (`virDomainGetJobStatsFlags`).
    enum JobStats {
        static let completed: UInt32 = 1
        static let keepCompleted: UInt32 = 2
    }

    /// Flags of a disk's job (`virDomainBlockJobAbortFlags`, `virDomainBlockJobInfoFlags`).
    enum BlockJob {
        static let bandwidthInBytes: UInt32 = 1
        static let asynchronous: UInt32 = 1
        static let pivot: UInt32 = 2
    }

    static let jobs: [Procedure: LibvirtHandler] = [
        .domainGetJobStats: { call in
            let domain = try await call.domain()
            let flags = try call.flags(3, function: "qemuDomainGetJobStats")
            let info = try await figures(of: domain, flags, call)
            return reply {
                $0.int(info.typeNumber)
                $0.parameters(info.parameters)
            }
        },
        .domainGetJobInfo: { call in
            let domain = try await call.domain()
            let info = try await figures(of: domain, 0, call)
            return reply {
                $0.int(info.typeNumber)
                for figure in info.figures { $0.uhyper(figure) }
            }
        },
        .domainAbortJob: { call in
            let domain = try await call.domain()
            try await abort(call, domain)
            return nothing
        },
        .domainAbortJobFlags: { call in
            let domain = try await call.domain()
            let flags = try call.flags(1, function: "qemuDomainAbortJobFlags")
            guard flags == 0 else { throw WireError.notPostCopy }
            try await abort(call, domain)
            return nothing
        },
        .domainGetBlockJobInfo: { call in
            let domain = try await call.domain()
            let path = try call.arguments.string()
            _ = try call.flags(
                BlockJob.bandwidthInBytes, function: "qemuDomainGetBlockJobInfo")
            let target = try await call.target(path, of: domain)
            let progress = await call.manager.progress(
                ofDisk: target, in: await call.job(of: domain, disk: target))
            return reply {
                $0.bool(progress != nil)
                $0.int(progress == nil ? 0 : blockJobBackup)
                $0.uhyper(0)
                $0.uhyper(progress?.read ?? 0)
                $0.uhyper(progress?.total ?? 0)
            }
        },
        .domainBlockJobAbort: { call in
            let domain = try await call.domain()
            let path = try call.arguments.string()
            let flags = try call.flags(
                BlockJob.asynchronous | BlockJob.pivot, function: "qemuDomainBlockJobAbort")
            let target = try await call.target(path, of: domain)
            guard let job = await call.jobToEnd(of: domain, disk: target) else {
                throw WireError.withoutBlockJob(target)
            }
            guard flags & BlockJob.pivot == 0 else { throw WireError.nothingToPivot(target) }
            // One disk less makes a backup of nothing: the whole job ends, as libvirt's does.
            try await call.manager.end(domain: domain.name, job: job, cause: .abort)
            return nothing
        },
    ]

    /// The type of a block job that is a backup (`virDomainBlockJobType`).
    static let blockJobBackup: Int32 = 5

    private static func abort(_ call: LibvirtCall, _ domain: LibvirtDomain) async throws {
        guard let job = await call.jobToEnd(of: domain) else { throw ControlError.noActiveJob }
        try await call.manager.end(domain: domain.name, job: job, cause: .abort)
    }

    private static func figures(
        of domain: LibvirtDomain, _ flags: UInt32, _ call: LibvirtCall
    ) async throws -> JobInfo {
        let keeps = flags & JobStats.keepCompleted != 0
        guard flags & JobStats.completed != 0 else {
            guard !keeps else {
                throw WireError.neededFlag(
                    "VIR_DOMAIN_JOB_STATS_COMPLETED", by: "VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED",
                    in: "virDomainGetJobStats", domain: WireErrorDomain.domain)
            }
            guard let job = await call.job(of: domain) else { return .none }
            return try await call.manager.jobInfo(domain: domain.name, job: job)
        }
        // Who may change nothing leaves the figures for who comes next.
        return try await completed(domain, keeps: keeps || call.session.isReadOnly, call)
    }

    private static func completed(
        _ domain: LibvirtDomain, keeps: Bool, _ call: LibvirtCall
    ) async throws -> JobInfo {
        let begun = call.context.begunJobs
        let ended = try await call.manager.endedJobs(domain: domain.name).compactMap(\.id)
        let job: String?
        switch begun.meaning(of: call.session, domain: domain.name, ended: ended) {
        case .job(let id): job = id
        case .ownIsRead: return .none
        case .newest: job = nil
        }
        let info = try await call.manager.completedJobInfo(
            domain: domain.name, job: job, keep: keeps)
        if !keeps, let id = info.id { begun.noteRead(id) }
        return info
    }
}

extension LibvirtCall {
    /// The job that a call means which can name none: nil when none runs.
    func job(of domain: LibvirtDomain, disk target: String? = nil) async -> String? {
        await manager.meantJob(of: domain.name, disk: target, preferring: session.begunJobs)
    }

    /// The job that a call means which ends one and can name none: nil when none runs.
    ///
    /// A tool that has asked for a backup itself never ends another's: it may clean up after one
    /// that has ended, or did not begin.
    func jobToEnd(of domain: LibvirtDomain, disk target: String? = nil) async -> String? {
        let own = session.begunJobs
        let meant = await manager.meantJob(of: domain.name, disk: target, preferring: own)
        guard let meant, own.contains(meant) || !session.hasBackedUp(domain.definition.uuid)
        else { return nil }
        return meant
    }

    /// The target of a disk that the client names.
    ///
    /// - Throws: 8 when the domain has no such disk.
    func target(_ disk: String, of domain: LibvirtDomain) async throws -> String {
        guard let target = try await manager.diskTarget(named: disk, of: domain.name) else {
            throw WireError(
                code: WireErrorCode.invalidArgument, domain: WireErrorDomain.qemu,
                prefix: ErrorCategory.invalidArgument.prefix,
                detail: "disk '\(disk)' not found in domain")
        }
        return target
    }
}

extension JobManager {
    /// The newest job of a domain that runs, of those in `own` when one of them does.
    ///
    /// - Parameter target: only jobs that this disk takes part in.
    func meantJob(
        of domain: String, disk target: String?, preferring own: Set<String>
    ) -> String? {
        let running = jobs.values.filter { job in
            job.domain == domain && job.state.acceptsEnd
                && (target == nil
                    || job.plan.disks.contains { $0.target == target && $0.participates })
        }.sorted { $0.begun < $1.begun }
        return (running.last { own.contains($0.id) } ?? running.last)?.id
    }

    /// How far a job's backup of one disk has come, in bytes; nil when there is no such job.
    ///
    /// Before anything is read the whole is the disk's size, as in libvirt. It is never zero: to
    /// clients that is a job that has not begun.
    func progress(ofDisk target: String, in job: String?) async -> (read: UInt64, total: UInt64)? {
        guard let job else { return nil }
        await refresh(job)
        guard let disk = jobs[job]?.info().disks?.first(where: { $0.disk == target }) else {
            return jobs[job].map { (0, max($0.started?.diskSizes[target] ?? 0, 1)) }
        }
        let total = disk.bytesRead == 0 ? disk.size : disk.bytesToRead ?? disk.size
        return (disk.progress, max(total, 1))
    }
}

extension WireError {
    /// Of two flags only one may be set.
    static func exclusiveFlags(
        _ one: String, _ other: String, in function: String, domain: Int32
    ) -> WireError {
        WireError(
            code: WireErrorCode.invalidArgument, domain: domain, argument: "ctl", of: function,
            "Flags '\(one)' and '\(other)' are mutually exclusive")
    }

    /// A flag is set without the one that it belongs to.
    static func neededFlag(
        _ needed: String, by flag: String, in function: String, domain: Int32
    ) -> WireError {
        WireError(
            code: WireErrorCode.invalidArgument, domain: domain, argument: "ctl", of: function,
            "Flag '\(needed)' is required by flag '\(flag)'")
    }

    static let notPostCopy = WireError(
        code: WireErrorCode.operationInvalid, domain: WireErrorDomain.qemu,
        prefix: ErrorCategory.operationInvalid.prefix,
        detail: "current job is not outgoing migration in post-copy mode")

    static func withoutBlockJob(_ target: String) -> WireError {
        WireError(
            code: WireErrorCode.invalidArgument, domain: WireErrorDomain.qemu,
            prefix: ErrorCategory.invalidArgument.prefix,
            detail: "disk \(target) does not have an active block job")
    }

    static func nothingToPivot(_ target: String) -> WireError {
        WireError(
            code: WireErrorCode.blockCopyActive, domain: WireErrorDomain.qemu,
            prefix: "block copy still active: ",
            detail: "block job 'backup-\(target)' not ready for pivot yet")
    }
}
