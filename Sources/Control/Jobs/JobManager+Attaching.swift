import BoundedCalls
import ServerInterface

/// Disks of domains are opened and closed.
extension JobManager {
    /// What became of a disk that was to be closed.
    enum Closing {
        case closed
        /// It is closed, but what was written to it last may not be durable.
        case closedUnflushed(String)
        /// It is served as before.
        case refused(ControlError)
    }

    /// Disks that were closed for a change.
    struct ClosedDisks {
        /// In the order in which they were withdrawn, with what they were.
        var disks: [(disk: DomainDisk, before: ManagedDomain.Attachment)] = []
        /// Why something that was written may not be durable.
        var problem: String?
    }

    /// Opens one disk of a domain that is being defined or changed.
    ///
    /// A disk that cannot be served, or need not be there, is told by its reason.
    ///
    /// `waits`: as long as the storage takes; otherwise a path that does not answer is an error.
    func open(
        _ disk: DomainDisk, of domain: ManagedDomain, waits: Bool = false
    ) async throws(ControlError) -> ManagedDomain.Attachment {
        if let unserved = disk.unserved { return .failed(reason: unserved.reason) }
        if let reason = domain.reasonAway(disk) { return .failed(reason: reason) }
        guard var configuration = try configuration(of: disk, in: domain) else { return .noMedia }
        if let error = await refusalElsewhere(disk, of: domain.definition, waits: waits) {
            guard disk.isOptional else { throw error }
            return .failed(reason: error.message)
        }
        configuration.waitsForStorage = waits
        let id: DiskID
        do {
            id = try await engine.attachDisk(configuration)
        } catch {
            let error = refusal(error, of: disk, in: domain.definition.name)
            guard disk.isOptional else { throw error }
            return .failed(reason: error.message)
        }
        know(id, disk, of: domain.definition.name)
        await reconcile(id, disk, of: domain)
        return .attached(id)
    }

    /// Closes a disk; without `force` only when no client is connected.
    func close(_ id: DiskID, force: Bool) async -> Closing {
        do throws(ServerFault) {
            if force {
                try await engine.detachDisk(id)
            } else {
                try await engine.detachDiskIfUnused(id)
            }
            return .closed
        } catch {
            if case .unknownDisk = error { return .closed }
            let error = controlError(from: error)
            return await isGone(id) ? .closedUnflushed(error.message) : .refused(error)
        }
    }

    private func isGone(_ id: DiskID) async -> Bool {
        do throws(ServerFault) {
            _ = try await engine.diskStatus(id)
            return false
        } catch {
            if case .unknownDisk = error { return true }
            return false
        }
    }

    /// Closes disks of a domain for a change; until `reopen` or `forgetExports` nobody opens them.
    ///
    /// - Throws: when one cannot be closed; the others are open again then.
    func withdraw(
        _ disks: [DomainDisk], of name: String, force: Bool
    ) async throws(ControlError) -> ClosedDisks {
        guard let domain = domains[name] else { throw .domainNotFound(name) }
        let exports = disks.map { domain.definition.liveExportName(target: $0.target) }
        guard exports.allSatisfy({ !attachingExports.contains($0) }) else {
            throw .domainChanging(name)
        }
        // Before the first wait: no job, checkpoint or retry takes them from here on.
        attachingExports.formUnion(exports)
        for disk in disks where domains[name]?.attachments[disk.target] != .noMedia {
            domains[name]?.attachments[disk.target] = .failed(reason: "it is being changed")
        }
        var closed = ClosedDisks()
        for disk in disks {
            let before = domain.attachments[disk.target] ?? .noMedia
            guard case .attached(let id) = before else {
                closed.disks.append((disk, before))
                continue
            }
            switch await close(id, force: force) {
            case .closed: break
            case .closedUnflushed(let text):
                closed.problem = closed.problem ?? text
                note(text, of: name, disk: disk.target)
            case .refused(let error):
                // Those that were not reached are as they were.
                let reached = Set(closed.disks.map(\.disk.target))
                for other in disks where !reached.contains(other.target) {
                    domains[name]?.attachments[other.target] =
                        domain.attachments[other.target] ?? .noMedia
                    attachingExports.remove(
                        domain.definition.liveExportName(target: other.target))
                }
                await reopen(closed, of: name)
                throw error.isInUse
                    ? .disksInUse(name, await clients(of: [(disk, id)])) : error
            }
            closed.disks.append((disk, before))
        }
        return closed
    }

    /// Takes a withdrawal back: disks that were open are opened again, as they are defined.
    func reopen(_ closed: ClosedDisks, of name: String) async {
        for (disk, before) in closed.disks {
            guard let domain = domains[name] else { return }
            defer {
                attachingExports.remove(domain.definition.liveExportName(target: disk.target))
            }
            guard case .attached = before else {
                domains[name]?.attachments[disk.target] = before
                continue
            }
            do throws(ControlError) {
                // Never straight into the dictionary: its place would be kept over the wait, and
                // code that reads it meanwhile would end the server.
                let opened = try await open(disk, of: domain)
                domains[name]?.attachments[disk.target] = opened
            } catch {
                note(failure: error.message, of: disk, in: name)
            }
        }
    }

    /// The withdrawn disks' names are free again.
    func forgetExports(_ closed: ClosedDisks, of definition: DomainDefinition) {
        for (disk, _) in closed.disks {
            attachingExports.remove(definition.liveExportName(target: disk.target))
        }
    }

    /// Refuses to go on while somebody is connected to one of these disks.
    func checkUnused(_ disks: [DomainDisk], of name: String) async throws(ControlError) {
        let domain = try domain(name)
        let attached = disks.compactMap { disk -> (DomainDisk, DiskID)? in
            guard case .attached(let id) = domain.attachments[disk.target] else { return nil }
            return (disk, id)
        }
        let used = await clients(of: attached)
        guard used.isEmpty else { throw .disksInUse(name, used) }
    }

    private func clients(
        of disks: [(DomainDisk, DiskID)]
    ) async -> [(target: String, clients: Int)] {
        var used: [(target: String, clients: Int)] = []
        for (disk, id) in disks {
            // A disk that cannot be asked is refused, or closed, when it is to be closed.
            guard let status = try? await engine.diskStatus(id), status.clientCount > 0 else {
                continue
            }
            used.append((disk.target, status.clientCount))
        }
        return used
    }

    /// Attaches a disk that is not served and should be, for as long as its storage takes.
    func attach(_ defined: DomainDisk, of definition: DomainDefinition) async {
        let name = definition.name
        let disk = await settleKind(of: defined, of: definition)
        guard let domain = domains[name], mayAttach(disk, of: definition) else { return }
        do throws(ControlError) {
            let attachment = try await open(disk, of: domain, waits: true)
            guard mayAttach(disk, of: definition) else {
                // The domain has gone or was changed while the storage took its time.
                if case .attached(let id) = attachment { _ = await close(id, force: true) }
                return
            }
            // A server that stops closes it with all others.
            guard !isStopping else { return }
            if case .failed(let reason) = attachment {
                return note(failure: reason, of: disk, in: name)
            }
            domains[name]?.attachments[disk.target] = attachment
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        } catch {
            guard !isStopping, mayAttach(disk, of: definition) else { return }
            note(failure: error.message, of: disk, in: name)
        }
    }

    /// The disk as what is there now, where its kind was assumed: a device may come later than the
    /// server.
    private func settleKind(
        of disk: DomainDisk, of definition: DomainDefinition
    ) async -> DomainDisk {
        guard disk.isKindAssumed, let path = disk.path else { return disk }
        // A path that does not answer holds up nothing but its own disk.
        let looked = await storage.run(
            at: .of(path), what: "'\(path)'", .end(milliseconds: nil)
        ) { Result<Bool?, ServerFault>.success(SystemCalls.reached(path)?.isBlock) }
        guard case .success(let isBlock?) = looked, isBlock == (disk.kind == .file),
            mayAttach(disk, of: definition),
            let settled = try? domains[definition.name]?.definition.settlingKind(
                of: disk.target, isBlock ? .block : .file),
            let found = settled.disks.first(where: { $0.target == disk.target })
        else { return disk }
        domains[definition.name]?.definition = settled
        return found
    }

    private func mayAttach(_ disk: DomainDisk, of definition: DomainDefinition) -> Bool {
        guard let domain = domains[definition.name], domain.disk(disk.target) == disk,
            domain.definition.uuid == definition.uuid,
            !attachingExports.contains(definition.liveExportName(target: disk.target)),
            domain.reasonAway(disk) == nil, case .failed = domain.attachments[disk.target]
        else { return false }
        return true
    }

    // Only a reason that is new is an event.
    func note(failure reason: String, of disk: DomainDisk, in name: String) {
        guard domains[name]?.attachments[disk.target] != .failed(reason: reason) else { return }
        domains[name]?.attachments[disk.target] = .failed(reason: reason)
        events.append(ControlEvent(.diskFailed, domain: name, disk: disk.target, message: reason))
    }

    /// Says of a disk whether it is served now.
    func announce(_ disk: DomainDisk, of domain: ManagedDomain) {
        let name = domain.definition.name
        switch domain.attachments[disk.target] {
        case .attached:
            events.append(ControlEvent(.diskAttached, domain: name, disk: disk.target))
        case .failed(let reason):
            events.append(
                ControlEvent(.diskFailed, domain: name, disk: disk.target, message: reason))
        case .noMedia, nil: break
        }
    }
}
