import NBDServer

extension JobManager {
    /// Defines a domain and serves its disks.
    ///
    /// `granularityBytes` is what one bit of its dirty bitmaps stands for. Throws when the name or
    /// UUID is taken, the granularity is wrong, or a disk cannot be opened; then nothing is
    /// attached or kept.
    @discardableResult
    package func define(
        xml: String, granularityBytes: UInt64? = nil
    ) async throws(ControlError) -> DomainView {
        let granularity: UInt32? =
            if let granularityBytes {
                try TrackingGranularity.checked(granularityBytes)
            } else { nil }
        let definition = try DomainDefinition.parse(xml)
        return try await define(definition, isStored: true, granularityBytes: granularity)
    }

    /// Defines an already parsed domain; `isStored` says whether it outlives the server.
    @discardableResult
    package func define(
        _ definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32? = nil
    ) async throws(ControlError) -> DomainView {
        let name = definition.name
        try checkNameIsFree(definition)
        reservedNames.insert(name)
        defer { reservedNames.remove(name) }
        let hadTracking = state?.hasTracking(of: definition.uuid) ?? true
        var domain = ManagedDomain(
            definition: definition, isStored: isStored,
            granularityBytes: granularityBytes ?? settings.granularityBytes)
        _ = loadCheckpoints(into: &domain)
        do throws(ControlError) {
            try await attachAll(&domain)
            if isStopping { throw .serverStopping }
            if isStored {
                try state?.save(
                    StoredDomain(
                        name: name, xml: definition.xml, granularityBytes: granularityBytes))
            }
        } catch {
            await detach(domain)
            if !hadTracking { try? state?.removeTracking(of: definition.uuid) }
            throw error
        }
        domains[name] = domain
        events.append(ControlEvent(.domainDefined, domain: name))
        for disk in definition.disks where domain.attachments[disk.target] != .noMedia {
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        }
        return view(of: domain)
    }

    private func attachAll(_ domain: inout ManagedDomain) async throws(ControlError) {
        for disk in domain.definition.disks {
            guard let configuration = try configuration(of: disk, in: domain) else {
                domain.attachments[disk.target] = .noMedia
                continue
            }
            do {
                let id = try await engine.attachDisk(configuration)
                domain.attachments[disk.target] = .attached(id)
                await reconcile(id, disk, of: domain)
            } catch {
                throw refusal(error, of: disk, in: domain.definition.name)
            }
        }
    }

    private func checkNameIsFree(_ definition: DomainDefinition) throws(ControlError) {
        guard !isStopping else { throw .serverStopping }
        guard domains.count < Self.domainsMax else {
            throw .limit("domains", Self.domainsMax)
        }
        guard domains[definition.name] == nil, !reservedNames.contains(definition.name) else {
            throw .domainExists(definition.name)
        }
        for other in domains.values where other.definition.uuid == definition.uuid {
            throw .uuidTaken(definition.uuid, by: other.definition.name)
        }
    }

    /// Forgets a domain, closes its disks and ends the tracking of their changes.
    ///
    /// - Parameter removingCheckpoints: its checkpoints go with it.
    /// - Throws: 55 while it has jobs, and while it has checkpoints that are to stay.
    package func undefine(
        _ name: String, removingCheckpoints: Bool = false
    ) async throws(ControlError) {
        _ = try domain(name)
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        let domain = try domain(name)
        guard !jobs.values.contains(where: { $0.domain == name }) else { throw .domainBusy(name) }
        guard removingCheckpoints || domain.checkpoints.isEmpty else {
            throw .domainHasCheckpoints(domain.checkpoints.count)
        }
        let uuid = domain.definition.uuid
        // After a crash here the domain is still there, and what its disks hold is stray.
        try state?.removeCheckpoints(of: uuid)
        domains[name]?.checkpoints = CheckpointTree()
        domains[name]?.keptLayers = []
        if domain.isStored { try state?.removeDomain(name) }
        domains.removeValue(forKey: name)
        reservedNames.insert(name)
        defer { reservedNames.remove(name) }
        forgetFinished(name)
        await detach(domain)
        try? state?.removeTracking(of: uuid)
        events.append(ControlEvent(.domainUndefined, domain: name))
    }

    /// Every domain, in the order of their names.
    package func listDomains() -> [DomainView] {
        domains.values.map(view(of:)).sorted { $0.domain < $1.domain }
    }

    /// The XML a domain was defined with.
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

    func attach(_ disk: DomainDisk, of definition: DomainDefinition) async {
        let name = definition.name
        guard let domain = domains[name] else { return }
        let export = definition.liveExportName(target: disk.target)
        guard disk.path != nil, attachingExports.insert(export).inserted else { return }
        defer { attachingExports.remove(export) }
        var configuration: DiskConfiguration
        do throws(ControlError) {
            guard let found = try self.configuration(of: disk, in: domain) else { return }
            configuration = found
            configuration.waitsForStorage = true
        } catch {
            note(failure: error.message, of: disk, in: name)
            return
        }
        do {
            let id = try await engine.attachDisk(configuration)
            if let domain = domains[name] { await reconcile(id, disk, of: domain) }
            // The domain may have gone, or come again, while the engine worked.
            guard case .failed = domains[name]?.attachments[disk.target], !isStopping else {
                try? await engine.detachDisk(id)
                return
            }
            domains[name]?.attachments[disk.target] = .attached(id)
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        } catch {
            guard !isStopping else { return }
            note(failure: refusal(error, of: disk, in: name).message, of: disk, in: name)
        }
    }

    // Only a reason that is new is an event.
    func note(failure reason: String, of disk: DomainDisk, in name: String) {
        guard domains[name]?.attachments[disk.target] != .failed(reason: reason) else { return }
        domains[name]?.attachments[disk.target] = .failed(reason: reason)
        events.append(ControlEvent(.diskFailed, domain: name, disk: disk.target, message: reason))
    }

    /// Takes up a domain at the start; its disks are opened by `openAll`.
    ///
    /// Returns a line for each thing that is wrong with it.
    func adopt(
        _ definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32? = nil,
        discarding jobIDs: Set<String> = []
    ) -> [String] {
        // Checkpoints and tracking are kept by uuid: two domains must never share one.
        if let other = domains.values.first(where: { $0.definition.uuid == definition.uuid }) {
            return [
                "domain '\(definition.name)' is left out: "
                    + ControlError.uuidTaken(definition.uuid, by: other.definition.name).message
            ]
        }
        var domain = ManagedDomain(
            definition: definition, isStored: isStored,
            granularityBytes: granularityBytes ?? settings.granularityBytes)
        let warnings = loadCheckpoints(into: &domain, discarding: jobIDs)
        for disk in definition.disks {
            domain.attachments[disk.target] =
                disk.path == nil ? .noMedia : .failed(reason: "not opened yet")
        }
        domains[definition.name] = domain
        return warnings
    }

    private func detach(_ domain: ManagedDomain) async {
        for disk in domain.attachedDisks {
            // A disk the engine no longer knows is detached already.
            try? await engine.detachDisk(disk)
        }
    }

    private func view(of domain: ManagedDomain) -> DomainView {
        DomainView(
            domain: domain.definition.name, uuid: domain.definition.uuid,
            disks: domain.definition.disks.count, failedDisks: domain.failedCount,
            jobs: jobs.values.count { $0.domain == domain.definition.name })
    }

    private func view(of disk: DomainDisk, in domain: ManagedDomain) async -> DiskView {
        var view = DiskView(
            disk: disk.target, source: disk.path, type: disk.kind.rawValue, device: disk.device,
            readOnly: disk.readOnly)
        switch domain.attachments[disk.target] {
        case .attached(let id):
            view.uri = ExportURI.text(
                endpoint: settings.liveEndpoint,
                name: domain.definition.liveExportName(target: disk.target))
            do {
                let status = try await engine.diskStatus(id)
                view.size = status.sizeBytes
                view.clients = status.clientCount
                view.dirtyBytes = status.tracking?.dirtyBytes ?? status.dirtyBytes
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
