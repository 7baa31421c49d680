package import ServerInterface

/// Single disks of a domain come, go, and change; machines on other disks do not notice.
extension JobManager {
    /// Adds a disk, given as libvirt's `<disk>`, and serves it.
    package func attachDisk(
        xml: String, to name: String
    ) async throws(ControlError) -> DiskView {
        let target = try DiskElement(xml).target
        if let domain = try? domain(name) {
            bringBack(domain.definition.liveExportName(target: target))
        }
        try await edit(name, force: false) { definition throws(ControlError) in
            try definition.addingDisk(xml)
        }
        return try await disk(target, of: name)
    }

    /// Takes a disk out of a domain; its part of the checkpoints ends.
    ///
    /// `disk` is its target or the path of its source.
    package func detachDisk(
        _ disk: String, from name: String, force: Bool = false
    ) async throws(ControlError) {
        let target = try self.target(disk, of: name)
        try await edit(name, force: force) { definition throws(ControlError) in
            try definition.removingDisk(target)
        }
    }

    /// Replaces the disk of the same target by another description of it.
    package func updateDisk(
        xml: String, of name: String, force: Bool = false
    ) async throws(ControlError) -> DiskView {
        let target = try self.target(try DiskElement(xml).target, of: name)
        try await edit(name, force: force) { definition throws(ControlError) in
            try definition.replacingDisk(xml)
        }
        return try await self.disk(target, of: name)
    }

    /// Puts another medium into a drive, or none.
    package func changeMedia(
        of disk: String, in name: String, to path: String?, kind: SourceKind = .file,
        force: Bool = false
    ) async throws(ControlError) -> DiskView {
        let target = try self.target(disk, of: name)
        try await edit(name, force: force) { definition throws(ControlError) in
            try definition.changingMedium(of: target, to: path, kind: kind)
        }
        return try await self.disk(target, of: name)
    }

    /// Makes a disk larger while it is served; nil takes the size that its source has by now.
    ///
    /// Machines see it when they connect anew. What is new counts as changed.
    package func resizeDisk(
        _ disk: String, of name: String, sizeBytes: UInt64?
    ) async throws(ControlError) -> DiskView {
        try reserve(name, uuid: try domain(name).definition.uuid)
        defer { reserved[name] = nil }
        await retryFailedDisks(of: name)
        guard !isStopping else { throw .serverStopping }
        let domain = try domain(name)
        guard let found = domain.disk(disk) else { throw .unknownDisk(disk) }
        try checkNoJob(on: [found], of: name)
        switch domain.attachments[found.target] {
        case .attached(let id):
            do {
                let bytes = try await engine.growDisk(id, sizeBytes: sizeBytes)
                removeStandIns(of: domain.definition)
                events.append(
                    ControlEvent(
                        .diskResized, domain: name, disk: found.target,
                        message: "\(bytes) bytes, for new connections"))
            } catch {
                throw controlError(from: error)
            }
        case .failed(let reason):
            throw .diskUnavailable(domain: name, target: found.target, reason: reason)
        case .noMedia, nil: throw .diskWithoutMedia(found.target)
        }
        return try await self.disk(found.target, of: name)
    }

    private func edit(
        _ name: String, force: Bool,
        _ edit: (DomainDefinition) throws(ControlError) -> DomainDefinition
    ) async throws(ControlError) {
        try reserve(name, uuid: try domain(name).definition.uuid)
        defer { reserved[name] = nil }
        try await change(name, force: force, edit)
    }

    private func target(_ disk: String, of name: String) throws(ControlError) -> String {
        guard let found = try domain(name).disk(disk) else { throw .unknownDisk(disk) }
        return found.target
    }

    private func disk(_ target: String, of name: String) async throws(ControlError) -> DiskView {
        let domain = try domain(name)
        guard let disk = domain.disk(target) else { throw .unknownDisk(target) }
        return await view(of: disk, in: domain)
    }
}
