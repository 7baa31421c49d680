import ServerInterface

extension JobManager {
    /// Defines a domain and serves its disks; a domain that is there already is changed to it.
    ///
    /// `granularityBytes` is what one bit of its dirty bitmaps covers. A disk that cannot be
    /// served at all is left out and shown with its reason. `force` lets a change disconnect
    /// clients of disks that it closes.
    ///
    /// - Throws: when the name or UUID is taken, the granularity is wrong, or a disk cannot be
    ///   opened; then nothing is attached or kept.
    @discardableResult
    package func define(
        xml: String, granularityBytes: UInt64? = nil, force: Bool = false
    ) async throws(ControlError) -> DomainView {
        let granularity: UInt32? =
            if let granularityBytes {
                try TrackingGranularity.checked(granularityBytes)
            } else { nil }
        let known = domains.mapValues(\.definition.uuid)
        let definition = try DomainDefinition.parse(xml) { known[$0] }
        guard domains[definition.name] == nil else {
            return try await redefine(definition, granularityBytes: granularity, force: force)
        }
        return try await define(definition, isStored: true, granularityBytes: granularity)
    }

    /// Defines an already parsed domain; `isStored` says whether it outlives the server.
    @discardableResult
    package func define(
        _ definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32? = nil
    ) async throws(ControlError) -> DomainView {
        try checkIsNew(definition)
        try refuseStandIns(in: definition)
        let name = definition.name
        try reserve(name, uuid: definition.uuid)
        defer { reserved[name] = nil }
        let hadTracking = state?.hasTracking(of: definition.uuid) ?? true
        var domain = ManagedDomain(
            definition: definition, isStored: isStored,
            granularityBytes: granularityBytes ?? settings.granularityBytes)
        for warning in loadCheckpoints(into: &domain) { note(warning, of: name) }
        for warning in loadMoves(into: &domain) { note(warning, of: name) }
        do throws(ControlError) {
            for disk in definition.disks {
                domain.attachments[disk.target] = try await open(disk, of: domain)
            }
            if isStopping { throw .serverStopping }
            if isStored { try state?.saveNew(record(of: domain, granularityBytes)) }
        } catch {
            throw await takeBack(domain, hadTracking: hadTracking, after: error)
        }
        domains[name] = domain
        events.append(ControlEvent(.domainDefined, domain: name))
        for disk in definition.disks { announce(disk, of: domain) }
        return view(of: domain)
    }

    /// What was opened for a refused definition is closed; returns what to tell.
    private func takeBack(
        _ domain: ManagedDomain, hadTracking: Bool, after error: ControlError
    ) async -> ControlError {
        var domain = domain
        let name = domain.definition.name
        var isServed = false
        for disk in domain.definition.disks {
            let before = domain.attachments[disk.target]
            domain.attachments[disk.target] =
                disk.isServable ? .failed(reason: error.message) : before
            guard case .attached(let id) = before else { continue }
            switch await close(id, force: true) {
            case .closed: break
            case .closedUnflushed(let text): note(text, of: name, disk: disk.target)
            case .refused:
                domain.attachments[disk.target] = before
                isServed = true
            }
        }
        guard !isServed else {
            // An export that cannot be closed stays where it is seen and can be undefined.
            domains[name] = domain
            return error.adding(
                "; a disk that was opened before cannot be closed, so the domain stays until it is "
                    + "undefined")
        }
        if !hadTracking { removeTracking(of: domain.definition) }
        return error
    }

    private func checkIsNew(_ definition: DomainDefinition) throws(ControlError) {
        try checkTakesChanges()
        guard domains.count + reserved.count < Self.domainsMax else {
            throw .limit("domains", Self.domainsMax)
        }
        if domains[definition.name] != nil { throw .domainExists(definition.name) }
        for other in domains.values where other.definition.uuid == definition.uuid {
            throw .uuidTaken(definition.uuid, by: other.definition.name)
        }
    }

    /// Keeps a name and a uuid for one caller, until `reserved[name]` is set to nil.
    func reserve(_ name: String, uuid: String) throws(ControlError) {
        if isLeaving { throw .serverRestarting }
        guard reserved[name] == nil else { throw .domainChanging(name) }
        if let other = reserved.first(where: { $0.value == uuid }) {
            throw .uuidTaken(uuid, by: other.key)
        }
        reserved[name] = uuid
    }

    /// The domain as the state directory keeps it.
    func record(of domain: ManagedDomain, _ granularityBytes: UInt32?) -> StoredDomain {
        StoredDomain(
            name: domain.definition.name, uuid: domain.definition.uuid,
            xml: domain.definition.xml, granularityBytes: granularityBytes)
    }

    /// Forgets a domain, closes its disks and ends the tracking of their changes.
    ///
    /// - Parameters:
    ///   - removingCheckpoints: its checkpoints go with it.
    ///   - force: clients of its disks are disconnected.
    /// - Throws: 55 while it has jobs, while it has checkpoints that are to stay, and while a
    ///   client is connected; then nothing has changed.
    package func undefine(
        _ name: String, removingCheckpoints: Bool = false, force: Bool = false
    ) async throws(ControlError) {
        try reserve(name, uuid: try domain(name).definition.uuid)
        defer { reserved[name] = nil }
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        try checkCanGo(name, removingCheckpoints: removingCheckpoints)
        let disks = try domain(name).definition.disks
        if !force { try await checkUnused(disks, of: name) }
        // A job or checkpoint may have come meanwhile; from here on there is none.
        try checkCanGo(name, removingCheckpoints: removingCheckpoints)
        let domain = try domain(name)
        let closed = try await withdraw(disks, of: name, force: force)
        do throws(ControlError) {
            let uuid = domain.definition.uuid
            // After a crash here the domain is still there, and what its disks hold is stray.
            try state?.removeCheckpoints(of: uuid)
            domains[name]?.checkpoints = CheckpointTree()
            domains[name]?.keptLayers = []
            if domain.isStored { try state?.removeDomain(name, uuid: uuid) }
        } catch {
            let told = keep(domain, after: error)
            await reopen(closed, of: name)
            throw told
        }
        domains.removeValue(forKey: name)
        forgetExports(closed, of: domain.definition)
        forgetFinished(name)
        removeStandIns(of: domain.definition)
        removeTracking(of: domain.definition)
        endMoves(of: domain, targets: Set(domain.moves.keys))
        events.append(ControlEvent(.domainUndefined, domain: name))
        if let problem = closed.problem { throw .diskNotFlushed(problem, done: "undefined") }
    }

    /// A domain that could not be forgotten stays, after the next start as well: its record may be
    /// gone already, and not durably so.
    private func keep(_ domain: ManagedDomain, after error: ControlError) -> ControlError {
        guard domain.isStored else { return error }
        do throws(ControlError) {
            try state?.save(record(of: domain, keptGranularity(of: domain)))
            for name in domain.checkpoints.topological {
                try state?.save(
                    try domain.checkpoints.checkpoint(name), of: domain.definition.uuid)
            }
            domains[domain.definition.name]?.checkpoints = domain.checkpoints
            domains[domain.definition.name]?.keptLayers = domain.keptLayers
            return error
        } catch let second {
            return error.adding(
                "; the next start may not find the domain or its checkpoints: \(second.message)")
        }
    }

    private func checkCanGo(
        _ name: String, removingCheckpoints: Bool
    ) throws(ControlError) {
        let domain = try domain(name)
        guard !jobs.values.contains(where: { $0.domain == name }) else { throw .domainBusy(name) }
        guard removingCheckpoints || domain.checkpoints.isEmpty else {
            throw .domainHasCheckpoints(domain.checkpoints.count)
        }
    }

    /// Leftovers are stray: a later domain of this uuid drops them.
    private func removeTracking(of definition: DomainDefinition) {
        do throws(ControlError) {
            // Where descriptors are what a refused define lacked, this goes without.
            state?.removeEmptyTracking(
                of: definition.uuid, targets: definition.disks.map(\.target))
            try state?.removeTracking(of: definition.uuid)
            for disk in definition.disks where disk.isTrackable {
                guard let state else { break }
                engine.forgetTracking(
                    directory: state.trackingDirectory(of: definition.uuid, target: disk.target))
            }
        } catch {
            note(error.message, of: definition.name)
        }
    }

    /// Every domain, in the order of their names.
    package func listDomains() -> [DomainView] {
        domains.values.map(view(of:)).sorted { $0.domain < $1.domain }
    }

    /// The XML a domain was defined with, as it was changed since.
    package func domainXML(_ name: String) throws(ControlError) -> String {
        try domain(name).definition.xml
    }

    /// The domain's disks; those that could not be opened before are tried again first.
    package func disks(of name: String) async throws(ControlError) -> [DiskView] {
        _ = try domain(name)
        await retryFailedDisks(of: name)
        let domain = try domain(name)
        var views: [DiskView] = []
        for disk in domain.definition.disks {
            views.append(await view(of: disk, in: domain))
        }
        return views
    }

    func domain(_ name: String) throws(ControlError) -> ManagedDomain {
        guard let domain = domains[name] else { throw .domainNotFound(name) }
        return domain
    }

    /// Something about a domain that somebody should know and that stops nothing.
    func note(_ text: String, of name: String, disk target: String? = nil) {
        events.append(
            ControlEvent(.trackingProblem, domain: name, disk: target, message: text))
    }

    func view(of domain: ManagedDomain) -> DomainView {
        let problems = domain.problems
        return DomainView(
            domain: domain.definition.name, uuid: domain.definition.uuid,
            disks: domain.definition.disks.count, failedDisks: domain.failedCount,
            jobs: jobs.values.count { $0.domain == domain.definition.name },
            problems: problems.isEmpty ? nil : problems)
    }

    func view(of disk: DomainDisk, in domain: ManagedDomain) async -> DiskView {
        var view = DiskView(
            disk: disk.target, source: disk.unserved?.source ?? disk.path,
            type: disk.unserved?.type ?? disk.kind.rawValue, device: disk.device,
            readOnly: disk.readOnly)
        switch domain.attachments[disk.target] {
        case .attached(let id):
            view.uri = ExportURI.text(
                endpoint: settings.liveEndpoint,
                name: domain.definition.liveExportName(target: disk.target))
            view.vhostSocket = vhostSocket(of: disk, in: domain)
            do {
                let status = try await engine.diskStatus(id)
                view.size = status.sizeBytes
                view.clients = status.clientCount
                view.dirtyBytes = status.tracking?.dirtyBytes ?? status.dirtyBytes
                view.overwrittenLastHour = status.overwrittenBytes
                let known = domain.checkpoints
                view.checkpoints = status.tracking?.checkpoints.filter { known[$0] != nil }
                view.granularityBytes = status.tracking?.granularityBytes
                view.recoveredBytes = status.tracking?.recoveredBytes
                view.trackingProblem = status.tracking?.problem
            } catch {
                view.errorMessage = controlError(from: error).message
            }
        case .failed(let reason): view.errorMessage = reason
        case .noMedia, nil: break
        }
        return view
    }
}
