import BoundedCalls
import ServerInterface

/// The size of a disk in its three senses, in bytes.
struct BlockFigures: Sendable, Hashable {
    /// As the machine sees it.
    var capacity: UInt64
    /// Room that is taken on the storage.
    var allocation: UInt64
    /// Where the source ends.
    var physical: UInt64
}

extension JobManager {
    /// The size of a disk, which is named by its target or source path.
    ///
    /// - Throws: 8 for an unknown disk, 1 for one that is not served, and for storage that does not
    ///   answer in time.
    func blockInfo(_ name: String, of domainName: String) async throws(ControlError) -> BlockFigures
    {
        let (disk, status) = try await attached(name, of: domainName)
        guard let path = disk.path else { throw .diskNotAttached(disk.target) }
        let size = status.sizeBytes
        guard disk.kind == .file else {
            return BlockFigures(capacity: size, allocation: size, physical: size)
        }
        let look = await storage.run(
            at: .of(path), what: "'\(path)'", .begin(milliseconds: settings.storageMilliseconds)
        ) { .success(SystemCalls.room(of: path)) }
        guard case .success(let room?) = look else {
            return BlockFigures(capacity: size, allocation: size, physical: size)
        }
        return BlockFigures(
            capacity: size, allocation: room.allocatedBytes, physical: room.sizeBytes)
    }

    /// What machines have asked of a disk, which is named in the same way.
    func guestFigures(
        _ name: String, of domainName: String
    ) async throws(ControlError) -> GuestFigures {
        try await attached(name, of: domainName).status.figures
    }

    private func attached(
        _ name: String, of domainName: String
    ) async throws(ControlError) -> (disk: DomainDisk, status: DiskStatus) {
        let domain = try domain(domainName)
        guard let target = try diskTarget(named: name, of: domainName),
            let disk = domain.disk(target)
        else {
            throw ControlError(
                .invalidArgument, code: "disk-path-unknown", status: 404,
                detail: "invalid path \(name) not assigned to domain")
        }
        guard case .attached(let id) = domain.attachments[disk.target],
            let status = try? await engine.diskStatus(id)
        else { throw .diskNotAttached(disk.target) }
        return (disk, status)
    }

    /// Scratch of a domain's running backups.
    func scratchFigures(of name: String) async -> [ScratchFigures] {
        var list: [ScratchFigures] = []
        let running = jobs.values.filter { $0.domain == name && $0.state.acceptsEnd }
        for job in running.sorted(by: { $0.begunAt < $1.begunAt }) {
            guard let report = try? await engine.jobReport(id: job.id) else { continue }
            for disk in job.plan.disks {
                guard let scratch = disk.scratch, let index = disk.index,
                    let figures = report.disks.first(where: { $0.target == disk.target })
                else { continue }
                list.append(
                    ScratchFigures(
                        target: disk.target, path: scratch.path, index: UInt32(clamping: index),
                        usedBytes: figures.scratchUsedBytes, sizeBytes: figures.sizeBytes))
            }
        }
        return list
    }
}

/// One disk's scratch in a running backup.
struct ScratchFigures: Sendable, Hashable {
    var target: String
    var path: String
    /// By which libvirt's block calls name it: `vda[7]`.
    var index: UInt32
    var usedBytes: UInt64
    /// The disk's: the most that scratch can come to.
    var sizeBytes: UInt64
}

extension ControlError {
    static func diskNotAttached(_ target: String) -> ControlError {
        ControlError(
            .operationFailed, code: "disk-not-attached", status: 409,
            detail: "disk '\(target)' does not currently have a source assigned")
    }
}
