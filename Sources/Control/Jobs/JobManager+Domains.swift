import NBDServer

extension JobManager {
    /// Defines a domain and serves its disks.
    ///
    /// Throws when the name or UUID is taken or a disk cannot be opened; then nothing is attached
    /// or kept.
    @discardableResult
    package func define(xml: String) async throws(ControlError) -> DomainView {
        let definition = try DomainDefinition.parse(xml)
        return try await define(definition, isStored: true)
    }

    /// Defines an already parsed domain; `isStored` says whether it outlives the server.
    @discardableResult
    package func define(
        _ definition: DomainDefinition, isStored: Bool
    ) async throws(ControlError) -> DomainView {
        let name = definition.name
        try checkNameIsFree(definition)
        reservedNames.insert(name)
        defer { reservedNames.remove(name) }
        var domain = ManagedDomain(definition: definition, isStored: isStored)
        do {
            for disk in definition.disks {
                guard let configuration = definition.configuration(of: disk) else {
                    domain.attachments[disk.target] = .noMedia
                    continue
                }
                domain.attachments[disk.target] = .attached(
                    try await engine.attachDisk(configuration))
            }
        } catch {
            await detach(domain)
            throw controlError(from: error)
        }
        do throws(ControlError) {
            if isStopping { throw .serverStopping }
            if isStored { try state?.save(StoredDomain(name: name, xml: definition.xml)) }
        } catch {
            await detach(domain)
            throw error
        }
        domains[name] = domain
        events.append(ControlEvent(.domainDefined, domain: name))
        for disk in definition.disks where domain.attachments[disk.target] != .noMedia {
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        }
        return view(of: domain)
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

    /// Forgets a domain and closes its disks; refused while it has jobs.
    package func undefine(_ name: String) async throws(ControlError) {
        let domain = try domain(name)
        guard !jobs.values.contains(where: { $0.domain == name }) else { throw .domainBusy(name) }
        if domain.isStored { try state?.removeDomain(name) }
        domains.removeValue(forKey: name)
        reservedNames.insert(name)
        defer { reservedNames.remove(name) }
        forgetFinished(name)
        await detach(domain)
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

    /// Attaches each disk that is not served and should be; failures are kept as reasons.
    func retryFailedDisks(of name: String) async {
        guard let domain = domains[name], !isStopping else { return }
        for disk in domain.definition.disks {
            guard case .failed = domains[name]?.attachments[disk.target] else { continue }
            await attach(disk, of: domain.definition)
        }
    }

    private func attach(_ disk: DomainDisk, of definition: DomainDefinition) async {
        let name = definition.name
        guard let configuration = definition.configuration(of: disk),
            attachingExports.insert(configuration.exportName).inserted
        else { return }
        defer { attachingExports.remove(configuration.exportName) }
        do {
            let id = try await engine.attachDisk(configuration)
            // The domain may have gone, or come again, while the engine worked.
            guard case .failed = domains[name]?.attachments[disk.target], !isStopping else {
                try? await engine.detachDisk(id)
                return
            }
            domains[name]?.attachments[disk.target] = .attached(id)
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        } catch {
            let reason = controlError(from: error).message
            guard domains[name]?.attachments[disk.target] != .failed(reason: reason) else {
                return
            }
            domains[name]?.attachments[disk.target] = .failed(reason: reason)
            events.append(
                ControlEvent(.diskFailed, domain: name, disk: disk.target, message: reason))
        }
    }

    /// Serves a domain at the start: a disk that cannot be opened costs only itself.
    ///
    /// Returns a line for each such disk.
    func adopt(_ definition: DomainDefinition, isStored: Bool) async -> [String] {
        var domain = ManagedDomain(definition: definition, isStored: isStored)
        for disk in definition.disks {
            domain.attachments[disk.target] =
                disk.path == nil ? .noMedia : .failed(reason: "not opened yet")
        }
        domains[definition.name] = domain
        await retryFailedDisks(of: definition.name)
        return definition.disks.compactMap { disk in
            guard case .failed(let reason) = domains[definition.name]?.attachments[disk.target]
            else { return nil }
            return "disk '\(disk.target)' of domain '\(definition.name)': \(reason)"
        }
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
                view.dirtyBytes = status.dirtyBytes
            } catch {
                view.errorMessage = controlError(from: error).message
            }
        case .failed(let reason): view.errorMessage = reason
        case .noMedia, nil: break
        }
        return view
    }
}
