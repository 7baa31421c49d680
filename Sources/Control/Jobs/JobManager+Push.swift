import BoundedCalls
import ServerInterface

/// Jobs whose targets the server writes itself: a push is a job like any other, and its clients are
/// workers of the server, one process for each disk.
///
/// A target is made and opened before the instant is fixed, so that what can be refused is refused;
/// it is written under a name of its own and gets its real one when everything is durable. A push
/// that ends in any other way leaves it marked as failed.
extension JobManager {
    /// Connections of all workers of a job together.
    private static let pushConnections = 16
    private static let pushConnectionsPerDisk = 4
    /// A disk that has data in so much of it is dense.
    private static let densePerCent: UInt64 = 75
    /// An end that is refused is asked for again after so long, in seconds.
    private static let endRetrySeconds = 1

    // MARK: At the begin

    /// Makes the targets of a push and starts its workers; nothing is left when it throws.
    func preparePush(_ id: String) async throws(ControlError) {
        guard jobs[id]?.plan.push != nil else { return }
        try await makeTargets(of: id)
        let crew = try await crew(of: id)
        jobs[id]?.crew = crew
        try await crew.prepare()
    }

    /// What a push will write, for its record.
    func targets(of plan: BackupPlan) -> [StoredJob.Target]? {
        guard plan.push != nil else { return nil }
        return plan.disks.compactMap { disk in
            disk.pushTarget.map {
                StoredJob.Target(
                    disk: disk.target, path: $0.path,
                    isNew: $0.kind == .file && !$0.reuseExternal)
            }
        }
    }

    /// A push that did not begin leaves nothing behind.
    func discardPush(_ id: String) async {
        guard let job = jobs[id], let targets = job.record.targets else { return }
        job.crew?.stop()
        for target in targets where target.identity != nil {
            _ = await onStorage(target.path) { () -> Bool in
                PushFiles.remove(target)
                return true
            }
        }
        leaveRoom(of: job)
    }

    /// Nothing of a push that is over can be given to machines.
    func leaveRoom(of job: Job) {
        guard job.plan.push != nil else { return }
        engine.dropRoom(ofJob: job.id)
        job.crew?.answerAll()
    }

    private func makeTargets(of id: String) async throws(ControlError) {
        guard let targets = jobs[id]?.record.targets else { return }
        for (index, target) in targets.enumerated() {
            let path = target.path
            jobs[id]?.record.targets?[index].bootID = SystemCalls.bootID
            guard target.isNew else {
                let found = await onStorage(path) { SystemCalls.reached(path)?.identity }
                guard case .success(let identity?) = found else {
                    throw .scratchNotCreated(path: path, errorText: "it is not there")
                }
                jobs[id]?.record.targets?[index].identity = identity
                continue
            }
            let made = await storage.run(
                at: .of(path), what: "'\(path)'",
                .begin(milliseconds: settings.storageMilliseconds),
                late: { made in
                    // The begin has been refused meanwhile.
                    guard case .success(let identity) = made else { return }
                    var target = target
                    target.identity = identity
                    PushFiles.remove(target)
                }
            ) { () -> Result<Result<SystemCalls.FileIdentity, PushFiles.Problem>, ServerFault> in
                .success(PushFiles.create(path))
            }
            switch made {
            case .failure(let fault): throw controlError(from: fault)
            case .success(.failure(let problem)):
                guard problem.kind != .exists else {
                    throw .scratchExists(path: problem.text, disk: target.disk)
                }
                throw .scratchNotCreated(path: path, errorText: problem.text)
            case .success(.success(let identity)):
                jobs[id]?.record.targets?[index].identity = identity
            }
        }
        // After a crash from here on the next server knows what is to be removed.
        if let record = jobs[id]?.record { try state?.update(record) }
    }

    private func crew(of id: String) async throws(ControlError) -> PushCrew {
        guard let job = jobs[id], let push = job.plan.push else { throw .jobNotFound(id) }
        guard let starter = settings.pusher else {
            throw .unsupportedConfiguration("this server cannot write targets")
        }
        let taking = job.plan.disks.filter(\.participates)
        var orders: [String: PushOrder] = [:]
        for disk in taking {
            guard let target = disk.pushTarget else { continue }
            let isNew = target.kind == .file && !target.reuseExternal
            var order = PushOrder(
                path: isNew ? target.path + PushFiles.partialSuffix : target.path,
                kind: target.kind, format: target.format, isNew: isNew,
                keepsImage: target.reuseExternal && target.format == .qcow2,
                sizeBytes: try await size(of: disk.target, in: job),
                socketPath: "\(settings.runDirectory)/push-\(id)-\(orders.count)")
            let identity = job.record.targets?.first { $0.disk == disk.target }?.identity
            order.device = identity?.device
            order.inode = identity?.inode
            order.compresses = push.compresses
            order.verifies = push.verifies
            order.isDense = await isDense(disk, in: job)
            order.connections = min(
                Self.pushConnectionsPerDisk, max(Self.pushConnections / taking.count, 1))
            orders[disk.target] = order
        }
        let engine = engine
        return PushCrew(
            job: id, orders: orders, starter: starter,
            storageMilliseconds: settings.storageMilliseconds,
            bytesPerSecond: push.bytesPerSecond,
            neighbours: PushCrew.Neighbours(
                room: { engine.machineRoom }, hold: { engine.holdRoom($0) }))
    }

    // Whether a full backup of a file finds data nearly everywhere, as far as that can be told
    // beforehand: it may be wrong.
    private func isDense(_ disk: BackupPlan.Disk, in job: Job) async -> Bool {
        guard disk.incremental == nil,
            let known = domains[job.domain]?.definition.disks.first(where: {
                $0.target == disk.target
            }), known.kind == .file, let path = known.path
        else { return false }
        let room = await onStorage(path) { SystemCalls.room(of: path) }
        guard case .success(let room?) = room, room.sizeBytes > 0 else { return false }
        return room.allocatedBytes / Self.densePerCent >= room.sizeBytes / 100
    }

    private func size(of target: String, in job: Job) async throws(ControlError) -> UInt64 {
        // It may have grown since the instant.
        if let size = job.started?.diskSizes[target] { return size }
        let name = job.domain
        guard case .attached(let disk) = try domain(name).attachments[target] else {
            throw .diskUnavailable(domain: name, target: target, reason: "it is not served")
        }
        do throws(ServerFault) {
            return try await engine.diskStatus(disk).sizeBytes
        } catch {
            throw controlError(from: error)
        }
    }

    // MARK: While it runs

    /// Lets the workers copy; the job ends by itself when they are done.
    func startPush(_ id: String) {
        guard let job = jobs[id], let crew = job.crew, let started = job.started,
            case .unix(let socket, _) = started.endpoint
        else { return }
        var sources: [String: PushSource] = [:]
        for disk in job.plan.disks where disk.participates {
            sources[disk.target] = PushSource(
                socketPath: socket, exportName: disk.exportName ?? disk.target,
                bitmap: disk.offeredBitmap)
        }
        let all = sources
        Task {
            let outcome = await crew.work(all)
            await self.pushEnded(id, crew, outcome)
        }
    }

    /// Starts a push from its beginning with new workers, in place of those of the last server, or
    /// of this one; what they have written is written again.
    func restartPush(_ id: String) async throws(ControlError) {
        guard let job = jobs[id], job.plan.push != nil else { return }
        startingPushes.insert(id)
        defer { startingPushes.remove(id) }
        job.crew?.stop()
        for target in job.record.targets ?? [] {
            _ = await onStorage(target.path) { () -> Bool in
                PushFiles.unpublish(target)
                return true
            }
        }
        let crew = try await crew(of: id)
        // Somebody may have ended it meanwhile.
        guard jobs[id]?.state.acceptsEnd == true else { return }
        jobs[id]?.crew = crew
        try await crew.prepare()
        guard jobs[id]?.crew === crew, jobs[id]?.state.acceptsEnd == true else {
            return crew.stop()
        }
        startPush(id)
    }

    /// Ends the workers of all pushes; their jobs stay as they are, for the next server or
    /// `resumePushes`.
    func pausePushes() {
        for (id, job) in jobs {
            job.crew?.stop()
            jobs[id]?.crew = nil
        }
    }

    /// Goes on with pushes that were paused.
    func resumePushes() {
        for (id, job) in jobs where job.plan.push != nil {
            switch job.state {
            case .running:
                Task {
                    do throws(ControlError) {
                        try await self.restartPush(id)
                    } catch {
                        await self.endPush(id, self.crew(id), .pushFailed(reason: error.message))
                    }
                }
            case .broken(let reason):
                // It broke while it was paused, or its end was refused then: there is no worker any
                // more whose end would be its end.
                Task { await self.endPush(id, nil, .pushFailed(reason: reason)) }
            case .starting, .ending, .ended: break
            }
        }
    }

    private func pushEnded(
        _ id: String, _ crew: PushCrew, _ outcome: PushCrew.Outcome
    ) async {
        // A server that is about to leave either takes the workers away, or stays.
        while isLeaving, !isStopping, jobs[id]?.crew === crew {
            try? await Task.sleep(for: .milliseconds(50))
        }
        // The next server goes on with it, or others have ended it.
        guard jobs[id]?.crew === crew, !isStopping else { return }
        switch outcome {
        case .done: await endPush(id, crew, .pushed)
        case .failed(let reason): await endPush(id, crew, .pushFailed(reason: reason))
        case .stopped: break
        }
    }

    private func crew(_ id: String) -> PushCrew? { jobs[id]?.crew }

    /// Ends a push for what has become of these workers; others may have begun anew meanwhile.
    func endPush(_ id: String, _ crew: PushCrew?, _ cause: EndCause) async {
        if case .pushFailed(let reason) = cause {
            // A worker that cannot read says less than the job that has broken.
            await refresh(id)
            guard jobs[id]?.state.acceptsEnd == true else { return }
            markBroken(id, reason)
        }
        while jobs[id]?.state.acceptsEnd == true, jobs[id]?.crew === crew, !isStopping {
            if (try? await end(job: id, cause: cause)) != nil { return }
            try? await Task.sleep(for: .seconds(Self.endRetrySeconds))
        }
    }

    // MARK: At the end

    /// Gives the targets of a good push their names; what is in the way, nil if nothing is.
    func publish(_ job: Job) async -> String? {
        for target in job.record.targets ?? [] {
            let answer = await onStorage(
                target.path, late: { _ in _ = PushFiles.spoil(target) },
                { PushFiles.publish(target) })
            switch answer {
            case .failure(let fault): return controlError(from: fault).message
            case .success(let problem?): return problem
            case .success(nil): continue
            }
        }
        return nil
    }

    /// Marks the targets of a push that has failed; returns those for which that is still to be
    /// done.
    func spoil(
        _ targets: [StoredJob.Target]?, domain: String, id: String
    ) async -> [StoredJob.Target]? {
        var left: [StoredJob.Target] = []
        for target in targets ?? [] {
            let answer = await onStorage(target.path, { PushFiles.spoil(target) })
            switch answer {
            case .failure(let fault):
                left.append(target)
                noteStateProblem(
                    "'\(target.path)' is not marked as failed: "
                        + controlError(from: fault).message, domain: domain, id: id)
            case .success(let outcome):
                if case .failed = outcome { left.append(target) }
                guard let problem = outcome.problem else { continue }
                noteStateProblem(problem, domain: domain, id: id)
            }
        }
        return left.isEmpty ? nil : left
    }

    private func onStorage<Value: Sendable>(
        _ path: String, late: @escaping @Sendable (Value) -> Void = { _ in },
        _ body: @escaping @Sendable () -> Value
    ) async -> Result<Value, ServerFault> {
        await storage.run(
            at: .of(path), what: "'\(path)'", .end(milliseconds: settings.storageMilliseconds),
            late: late
        ) { .success(body()) }
    }
}

extension ControlError {
    /// A push ends when it is done.
    static func pushEndsItself(_ id: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "push-running", status: 409,
            detail: "push job '\(id)' ends by itself when its targets are written: wait for it "
                + "(domjobinfo --watch) or abort it (domjobabort)")
    }
}
