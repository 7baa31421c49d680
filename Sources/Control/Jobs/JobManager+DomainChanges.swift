import ServerInterface

/// What a domain's disks have to go through to become those of another definition.
struct DomainDifference {
    /// Disks that are closed: gone, or served in another way afterwards.
    var leaving: [DomainDisk] = []
    /// Disks that are opened: new, or served in another way.
    var coming: [DomainDisk] = []
    /// Of those that come: tracking found under their name tells nothing of them.
    var beginningAnew: Set<String> = []
    /// Targets whose tracking has nothing to track any more.
    var endingTracking: Set<String> = []

    init(from old: DomainDefinition, to new: DomainDefinition) {
        let before = Dictionary(old.disks.map { ($0.target, $0) }) { first, _ in first }
        let after = Dictionary(new.disks.map { ($0.target, $0) }) { first, _ in first }
        leaving = old.disks.filter { disk in
            after[disk.target].map { !$0.isServed(like: disk) } ?? true
        }
        coming = new.disks.filter { disk in
            before[disk.target].map { !$0.isServed(like: disk) } ?? true
        }
        for disk in coming where before[disk.target]?.isTrackable != true {
            beginningAnew.insert(disk.target)
        }
        for disk in leaving
        where disk.isTrackable && after[disk.target]?.isTrackable != true {
            endingTracking.insert(disk.target)
        }
    }
}

extension JobManager {
    /// Changes a domain to another definition of the same name and uuid.
    ///
    /// Only disks that are gone, new, or served in another way are touched: machines stay connected
    /// to the others, whose checkpoints go on. The state file is replaced in one step when every
    /// disk is open; before that a fault or a crash leaves the domain as it was. Checkpoints of a
    /// disk whose new source had been opened by then may be unusable.
    ///
    /// - Throws: 55 while a client is connected to a disk that is to be closed, unless forced, and
    ///   while a job uses it.
    func redefine(
        _ definition: DomainDefinition, granularityBytes: UInt32? = nil, force: Bool
    ) async throws(ControlError) -> DomainView {
        let name = definition.name
        let uuid = try domain(name).definition.uuid
        guard uuid == definition.uuid else { throw .uuidTaken(uuid, by: name) }
        try reserve(name, uuid: uuid)
        defer { reserved[name] = nil }
        return try await change(
            name, granularityBytes: granularityBytes, force: force
        ) { _ throws(ControlError) in definition }
    }

    /// Changes a reserved domain to what `edit` makes of its definition.
    @discardableResult
    func change(
        _ name: String, granularityBytes: UInt32? = nil, force: Bool,
        _ edit: (DomainDefinition) throws(ControlError) -> DomainDefinition
    ) async throws(ControlError) -> DomainView {
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        guard !isStopping else { throw .serverStopping }
        let old = try domain(name)
        var new = old
        new.definition = try edit(old.definition)
        try refuseStandIns(in: new.definition)
        if let granularityBytes { new.granularityBytes = granularityBytes }
        let difference = DomainDifference(from: old.definition, to: new.definition)
        try checkNoJob(on: difference.leaving, of: name)
        if !force { try await checkUnused(difference.leaving, of: name) }
        let staged = try stage(new, granularityBytes)
        do throws(ControlError) {
            // A job may have begun meanwhile; from here on none does.
            try checkNoJob(on: difference.leaving, of: name)
            let closed = try await withdraw(difference.leaving, of: name, force: force)
            try await exchange(old, for: new, difference, closed, staged)
            finish(old, new, difference, closed)
            if let problem = closed.problem { throw .diskNotFlushed(problem, done: "changed") }
        } catch {
            if let staged { state?.discard(staged) }
            throw error
        }
        return view(of: try domain(name))
    }

    private func stage(
        _ domain: ManagedDomain, _ granularityBytes: UInt32?
    ) throws(ControlError) -> StateDirectory.StagedFile? {
        guard domain.isStored, let state else { return nil }
        let kept = granularityBytes ?? keptGranularity(of: domain)
        return try state.stage(record(of: domain, kept))
    }

    /// A domain that took the server's default goes on doing so.
    func keptGranularity(of domain: ManagedDomain) -> UInt32? {
        domain.granularityBytes == settings.granularityBytes ? nil : domain.granularityBytes
    }

    func checkNoJob(on disks: [DomainDisk], of name: String) throws(ControlError) {
        let targets = Set(disks.map(\.target))
        for job in jobs.values where job.domain == name {
            let taken = job.plan.disks.first { $0.participates && targets.contains($0.target) }
            if let taken { throw .diskInJob(taken.target, domain: name, job: job.id) }
        }
    }

    /// Opens what comes and puts the new definition in place; on a fault all is as it was, but for
    /// the checkpoints of a disk whose new source was opened before the fault.
    private func exchange(
        _ old: ManagedDomain, for new: ManagedDomain, _ difference: DomainDifference,
        _ closed: ClosedDisks, _ staged: StateDirectory.StagedFile?
    ) async throws(ControlError) {
        let name = old.definition.name
        var opened: [String: ManagedDomain.Attachment] = [:]
        do throws(ControlError) {
            for disk in await inOrderOfOpening(difference) {
                if difference.beginningAnew.contains(disk.target), disk.isTrackable {
                    try endTracking(of: new.definition.uuid, target: disk.target)
                }
                let attachment = try await open(disk, of: new)
                opened[disk.target] = attachment
            }
            if isStopping { throw .serverStopping }
            if let staged { try commit(staged, replacing: old) }
        } catch {
            await giveBack(opened, of: name)
            await reopen(closed, of: name)
            throw error
        }
        // Disks that are not touched may have been opened meanwhile.
        domains[name]?.definition = new.definition
        domains[name]?.granularityBytes = new.granularityBytes
        for disk in difference.leaving { domains[name]?.attachments[disk.target] = nil }
        for (target, attachment) in opened { domains[name]?.attachments[target] = attachment }
        forgetExports(closed, of: old.definition)
        removeStandIns(of: old.definition)
    }

    /// What comes, in the order in which it is opened.
    ///
    /// A disk that takes the place of a tracked one begins a chain of its own where the old one's
    /// was, so whatever may be refused comes before it.
    private func inOrderOfOpening(_ difference: DomainDifference) async -> [DomainDisk] {
        let replaced = Set(difference.leaving.filter(\.isTrackable).map(\.target))
        let paths = difference.coming.compactMap(\.path)
        var missing: Set<String> = []
        for (path, look) in await looks(at: paths, settings.storageMilliseconds) {
            if case .success(.some) = look { continue }
            missing.insert(path)
        }
        func rank(_ disk: DomainDisk) -> Int {
            if let path = disk.path, missing.contains(path) { return 0 }
            return replaced.contains(disk.target) ? 2 : 1
        }
        return difference.coming.enumerated()
            .sorted { (rank($0.element), $0.offset) < (rank($1.element), $1.offset) }
            .map(\.element)
    }

    /// A rename that was made and may not be durable is taken back by the old record.
    private func commit(
        _ staged: StateDirectory.StagedFile, replacing old: ManagedDomain
    ) throws(ControlError) {
        do throws(ControlError) {
            try state?.commit(staged)
        } catch {
            do throws(ControlError) {
                try state?.save(record(of: old, keptGranularity(of: old)))
            } catch let second {
                throw error.adding("; the next start may find the change made: \(second.message)")
            }
            throw error
        }
    }

    private func giveBack(
        _ opened: [String: ManagedDomain.Attachment], of name: String
    ) async {
        for (target, attachment) in opened {
            guard case .attached(let id) = attachment else { continue }
            switch await close(id, force: true) {
            case .closed: break
            case .closedUnflushed(let text): note(text, of: name, disk: target)
            case .refused(let error):
                // It goes with the server, or when somebody asks for its name again.
                events.append(
                    ControlEvent(
                        .diskFailed, domain: name, disk: target,
                        message: "its export is still served after a change that was refused: "
                            + error.message))
            }
        }
    }

    private func finish(
        _ old: ManagedDomain, _ new: ManagedDomain, _ difference: DomainDifference,
        _ closed: ClosedDisks
    ) {
        let name = old.definition.name
        for target in difference.endingTracking.sorted() {
            do throws(ControlError) {
                try endTracking(of: old.definition.uuid, target: target)
            } catch {
                // What is left is removed before a disk of this name is opened again.
                note(error.message, of: name, disk: target)
            }
        }
        events.append(ControlEvent(.domainChanged, domain: name))
        let targets = Set(new.definition.disks.map(\.target))
        endMoves(of: old, targets: Set(old.moves.keys).subtracting(targets))
        for (disk, _) in closed.disks where !targets.contains(disk.target) {
            events.append(ControlEvent(.diskDetached, domain: name, disk: disk.target))
        }
        guard let domain = domains[name] else { return }
        for disk in difference.coming { announce(disk, of: domain) }
    }
}
