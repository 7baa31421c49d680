package import ServerInterface

/// A backup job before it runs: every default filled in, every refusal that needs no I/O made.
package struct BackupPlan: Sendable, Hashable, Codable {
    /// One disk's part in the job.
    package struct Disk: Sendable, Hashable, Codable {
        package var target: String
        /// False for `backup='no'`; then only `target` means anything.
        package var participates: Bool
        /// Where old content is kept; nil when the disk does not take part.
        package var scratch: ScratchConfiguration?
        package var backupMode: BackupMode
        /// Checkpoint that an incremental backup starts from.
        package var incremental: String?
        /// Why the backup is full although a checkpoint was asked for.
        package var fallbackReason: String?
        package var exportName: String?
        /// Name of the bitmap given or, for an incremental disk, chosen.
        package var exportBitmap: String?
        /// Bitmaps from other bases, which the export offers behind that one; nil: none.
        package var moreBitmaps: [Bitmap]?
        /// Number that names the scratch within the job in libvirt's block calls.
        package var index: Int?
        /// What a push writes; nil in a pull.
        package var pushTarget: PushTarget?

        /// Name of the bitmap that the export offers; nil unless the backup is incremental.
        package var offeredBitmap: String? {
            participates && backupMode == .incremental ? exportBitmap : nil
        }

        /// Makes the part of a disk that takes none.
        package init(skipping target: String) {
            self.target = target
            participates = false
            backupMode = .full
        }
    }

    /// A dirty bitmap that an export offers besides the one that its backup is made from.
    package struct Bitmap: Sendable, Hashable, Codable {
        package var checkpoint: String
        package var name: String

        package init(checkpoint: String, name: String) {
            self.checkpoint = checkpoint
            self.name = name
        }
    }

    /// Most of them for one disk: each takes memory as an incremental job does.
    package static let moreBitmapsMax = 16

    /// Where a push writes one disk.
    package struct PushTarget: Sendable, Hashable, Codable {
        package var kind: SourceKind
        /// Absolute.
        package var path: String
        package var format: PushFormat
        /// What is there is written over and kept (`--reuse-external`).
        package var reuseExternal: Bool

        package init(kind: SourceKind, path: String, format: PushFormat, reuseExternal: Bool) {
            self.kind = kind
            self.path = path
            self.format = format
            self.reuseExternal = reuseExternal
        }
    }

    /// What a push is to do beyond libvirt's.
    package struct PushTerms: Sendable, Hashable, Codable {
        /// All disks together; nil: as fast as it goes.
        package var bytesPerSecond: UInt64?
        /// Clusters of qcow2 targets are compressed.
        package var compresses = false
        /// Targets are read back and compared before the job is completed.
        package var verifies = false
        package init(
            bytesPerSecond: UInt64? = nil, compresses: Bool = false, verifies: Bool = false
        ) {
            self.bytesPerSecond = bytesPerSecond
            self.compresses = compresses
            self.verifies = verifies
        }
    }

    /// Longest export or bitmap name in bytes.
    ///
    /// A string of the NBD protocol has at most 4096 bytes, of which `qemu:dirty-bitmap:` takes 18.
    package static let exportNameBytesMax = 4096 - 18

    /// The job's UUID, lower case.
    package let jobID: String
    /// All disks of the domain: those listed in their order, then the others in the domain's.
    package private(set) var disks: [Disk]
    package let endpoint: ListenEndpoint
    /// Checkpoint given for all disks.
    package let incremental: String?
    /// The request's `tls`.
    package let tls: Bool?
    /// Present when the server writes the targets itself.
    package let push: PushTerms?

    /// Decides everything about a job that can be decided without touching a file.
    ///
    /// - Parameters:
    ///   - reuseExternal: scratch files exist already and are kept.
    ///   - scratchSuffix: end of generated scratch names: the checkpoint's name, else Unix seconds.
    ///   - scratchDirectory: where generated scratch files lie; nil: beside the disk.
    ///   - firstIndex: index of the first disk that takes part; the others follow by ones.
    ///   - bases: what incremental backups may start from.
    /// - Throws: a refusal with libvirt's number; nothing has changed then.
    package static func make(
        _ request: BackupRequest, domain: DomainDefinition, jobID: String, reuseExternal: Bool,
        scratchSuffix: String, scratchDirectory: String? = nil, firstIndex: Int,
        bases: IncrementalBases = .none, push: PushTerms = PushTerms()
    ) throws(ControlError) -> BackupPlan {
        let requested = try align(request.disks, domain: domain)
        var planner = BackupPlanner(
            request: request, domain: domain, reuseExternal: reuseExternal,
            scratchSuffix: scratchSuffix, scratchDirectory: scratchDirectory, bases: bases,
            nextIndex: firstIndex)
        var disks: [Disk] = []
        for (disk, source) in requested {
            disks.append(try planner.plan(disk, source: source))
        }
        if push.compresses {
            let raw = disks.first { $0.pushTarget?.format == .raw }
            if let raw { throw .compressedRaw(raw.target) }
        }
        return BackupPlan(
            jobID: jobID, disks: disks, endpoint: request.endpoint,
            incremental: request.incremental, tls: request.tls,
            push: request.isPush ? push : nil)
    }

    /// Pairs every disk of the domain with what was asked of it.
    private static func align(
        _ listed: [BackupRequest.Disk]?, domain: DomainDefinition
    ) throws(ControlError) -> [(BackupRequest.Disk, DomainDisk)] {
        guard !domain.disks.isEmpty else { throw .domainWithoutDisks }
        let sources = Dictionary(domain.disks.map { ($0.target, $0) }) { first, _ in first }
        var aligned: [(BackupRequest.Disk, DomainDisk)] = []
        var seen: Set<String> = []
        for disk in listed ?? [] {
            guard let source = sources[disk.target] else { throw .unknownDisk(disk.target) }
            guard seen.insert(disk.target).inserted else { throw .diskListedTwice(disk.target) }
            if disk.participates, let unserved = source.unserved {
                throw .diskNotServed(source.target, reason: unserved.reason)
            }
            guard !disk.participates || source.path != nil else {
                throw .diskWithoutMedia(disk.target)
            }
            aligned.append((disk, source))
        }
        for source in domain.disks where !seen.contains(source.target) {
            let participates = listed == nil && source.isServable && !source.readOnly
            aligned.append(
                (BackupRequest.Disk(target: source.target, participates: participates), source))
        }
        guard aligned.contains(where: { $0.0.participates }) else { throw .noDisksSelected }
        return aligned
    }

    /// The plan with one incremental disk backed up in full, or nil when it is not incremental.
    package func makingFull(_ target: String, reason: String) -> BackupPlan? {
        guard
            let index = disks.firstIndex(where: {
                $0.target == target && $0.participates && $0.backupMode == .incremental
            })
        else { return nil }
        var plan = self
        plan.disks[index].backupMode = .full
        plan.disks[index].incremental = nil
        plan.disks[index].fallbackReason = reason
        if disks[index].exportBitmap == "backup-\(target)" {
            plan.disks[index].exportBitmap = nil
        }
        return plan
    }

    /// How the job's listener speaks: TLS always where the request says yes; where it says nothing
    /// and there are credentials, when the client wants to.
    ///
    /// - Throws: 55 for `tls='yes'` without credentials.
    package func security(offersTLS: Bool) throws(ControlError) -> ListenerSecurity {
        switch tls {
        case true?:
            guard offersTLS else { throw .tlsNotConfigured }
            return .required
        case false?: return .plaintext
        // Its only client is the server's own.
        case nil where push != nil: return .plaintext
        case nil: return offersTLS ? .selective : .plaintext
        }
    }

    /// Translates the plan for the server.
    ///
    /// - Parameter checkpoint: made in the job's instant.
    /// - Throws: 1 for a disk that takes part and has no entry in `diskIDs`.
    package func jobConfiguration(
        diskIDs: [String: DiskID], domain: String = "", security: ListenerSecurity = .plaintext,
        copyTimeoutMilliseconds: UInt64, checkpoint: CheckpointConfiguration? = nil
    ) throws(ControlError) -> JobConfiguration {
        var configured: [JobDiskConfiguration] = []
        for disk in disks where disk.participates {
            guard let id = diskIDs[disk.target], let scratch = disk.scratch,
                let exportName = disk.exportName
            else {
                throw .internalError("disk '\(disk.target)' is not attached to the server")
            }
            var incremental: IncrementalConfiguration?
            if let base = disk.incremental, let bitmap = disk.offeredBitmap {
                incremental = IncrementalConfiguration(checkpoint: base, bitmap: bitmap)
            }
            var configuration = JobDiskConfiguration(
                disk: id, target: disk.target, exportName: exportName, scratch: scratch,
                incremental: incremental)
            configuration.moreBitmaps = (disk.moreBitmaps ?? []).map {
                IncrementalConfiguration(checkpoint: $0.checkpoint, bitmap: $0.name)
            }
            configured.append(configuration)
        }
        return JobConfiguration(
            id: jobID, domain: domain, disks: configured, endpoint: endpoint, security: security,
            copyTimeoutMilliseconds: copyTimeoutMilliseconds, checkpoint: checkpoint)
    }
}
