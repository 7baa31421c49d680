import ServerInterface

/// Fills in one disk after the other, remembering what the earlier ones have taken.
struct BackupPlanner {
    let request: BackupRequest
    let domain: DomainDefinition
    let reuseExternal: Bool
    let scratchSuffix: String
    let scratchDirectory: String?
    let bases: IncrementalBases
    var nextIndex: Int
    private var exportNames: Set<String> = []
    private var scratchPaths: Set<String> = []

    init(
        request: BackupRequest, domain: DomainDefinition, reuseExternal: Bool,
        scratchSuffix: String, scratchDirectory: String?, bases: IncrementalBases, nextIndex: Int
    ) {
        self.request = request
        self.domain = domain
        self.reuseExternal = reuseExternal
        self.scratchSuffix = scratchSuffix
        self.scratchDirectory = scratchDirectory
        self.bases = bases
        self.nextIndex = nextIndex
    }

    mutating func plan(
        _ disk: BackupRequest.Disk, source: DomainDisk
    ) throws(ControlError) -> BackupPlan.Disk {
        var planned = BackupPlan.Disk(skipping: disk.target)
        guard disk.participates else { return planned }
        planned.participates = true
        if request.isPush { planned.pushTarget = try pushTarget(for: disk, source: source) }
        planned.scratch = try scratch(for: disk, source: source, planned.pushTarget)
        var base = try incrementalBase(of: disk)
        if let asked = base {
            planned.fallbackReason = try bases.fallbackReason(from: asked, disk: disk.target)
            if planned.fallbackReason != nil { base = nil }
        }
        planned.backupMode = base == nil ? .full : .incremental
        planned.incremental = base
        guard base == nil || planned.pushTarget?.format != .raw else {
            throw .incrementalRaw(disk.target)
        }
        guard base == nil || planned.pushTarget?.reuseExternal != true else {
            throw .incrementalKept(disk.target)
        }
        let exportName = disk.exportName ?? disk.target
        planned.exportName = exportName
        planned.exportBitmap = disk.exportBitmap ?? (base == nil ? nil : "backup-\(disk.target)")
        planned.moreBitmaps = try moreBitmaps(of: disk, beside: planned.offeredBitmap)
        let names = (planned.moreBitmaps ?? []).map(\.name) + [planned.exportBitmap ?? ""]
        let longest = max(exportName.utf8.count, names.map(\.utf8.count).max() ?? 0)
        guard longest <= BackupPlan.exportNameBytesMax else {
            throw .exportNameTooLong(disk.target, bytesMax: BackupPlan.exportNameBytesMax)
        }
        guard exportNames.insert(exportName).inserted else { throw .exportNameTaken(exportName) }
        planned.index = nextIndex
        nextIndex += 1
        return planned
    }

    /// The bitmaps of other bases; each must be there, as a tool that asks for one needs it.
    private func moreBitmaps(
        of disk: BackupRequest.Disk, beside first: String?
    ) throws(ControlError) -> [BackupPlan.Bitmap]? {
        guard !disk.bitmaps.isEmpty else { return nil }
        guard disk.bitmaps.count <= BackupPlan.moreBitmapsMax else {
            throw .limit("bitmaps of disk '\(disk.target)'", BackupPlan.moreBitmapsMax)
        }
        var strict = bases
        strict.fallsBackToFull = false
        var taken: Set<String> = first.map { [$0] } ?? []
        var planned: [BackupPlan.Bitmap] = []
        for bitmap in disk.bitmaps {
            _ = try strict.fallbackReason(from: bitmap.checkpoint, disk: disk.target)
            let name = bitmap.name ?? "backup-\(disk.target)-\(bitmap.checkpoint)"
            guard !name.isEmpty, taken.insert(name).inserted else {
                throw .bitmapNameTaken(name, disk: disk.target)
            }
            planned.append(BackupPlan.Bitmap(checkpoint: bitmap.checkpoint, name: name))
        }
        return planned
    }

    /// Returns the checkpoint that the disk's backup is to start from; nil for a full one.
    private func incrementalBase(of disk: BackupRequest.Disk) throws(ControlError) -> String? {
        guard disk.backupMode != .full else { return nil }
        guard let base = disk.incremental ?? request.incremental else {
            guard disk.backupMode != .incremental else {
                throw .incrementalWithoutBase(disk.target)
            }
            return nil
        }
        return base
    }

    // The default name is libvirt's.
    private mutating func pushTarget(
        for disk: BackupRequest.Disk, source: DomainDisk
    ) throws(ControlError) -> BackupPlan.PushTarget {
        var path = disk.pushPath
        if path == nil, disk.pushKind == .file, source.kind == .file, let base = source.path {
            path = "\(base).\(scratchSuffix)"
        }
        guard let path else { throw .scratchNameUnknown(disk.target) }
        try claim(path, for: disk.target)
        return BackupPlan.PushTarget(
            kind: disk.pushKind, path: path, format: disk.pushFormat, reuseExternal: reuseExternal)
    }

    private mutating func scratch(
        for disk: BackupRequest.Disk, source: DomainDisk, _ target: BackupPlan.PushTarget?
    ) throws(ControlError) -> ScratchConfiguration {
        let path: String
        // The target of a push has the name that scratch has in a pull.
        let ending = target == nil ? "" : ".scratch"
        if let given = disk.scratchPath {
            path = given
        } else if let scratchDirectory {
            // The domain's name may be longer than a file's.
            path = "\(scratchDirectory)/\(domain.uuid)-\(disk.target).\(scratchSuffix)" + ending
        } else if source.kind == .file, let sourcePath = source.path {
            path = "\(sourcePath).\(scratchSuffix)" + ending
        } else if let target, target.kind == .file {
            // Better there than nowhere.
            path = target.path + ending
        } else if target != nil {
            throw .scratchPlaceUnknown(disk.target)
        } else {
            throw .scratchNameUnknown(disk.target)
        }
        try claim(path, for: disk.target)
        // Of a push, what is reused is its target.
        return ScratchConfiguration(
            kind: disk.scratchKind, path: path, reuseExternal: reuseExternal && target == nil,
            image: disk.scratchImage)
    }

    private mutating func claim(_ path: String, for target: String) throws(ControlError) {
        // Scratch that is kept or is a device is opened as it is: taking a disk for it would
        // destroy the disk.
        let plain = Self.lexicallyNormal(path)
        let victim = domain.disks.first { $0.path.map(Self.lexicallyNormal) == plain }
        if let victim {
            throw .scratchIsSource(path: path, disk: target, source: victim.target)
        }
        guard scratchPaths.insert(plain).inserted else {
            throw .scratchExists(path: path, disk: target)
        }
    }

    /// Removes empty and `.` components; `..` stays, since a link may precede it.
    static func lexicallyNormal(_ path: String) -> String {
        // As most are, and a begin looks at all disks there are.
        if isNormal(path) { return path }
        // Scalars, not characters: a combining mark behind a slash must not hide it.
        return path.unicodeScalars.split(separator: "/")
            .filter { !$0.elementsEqual(".".unicodeScalars) }
            .map { "/" + String($0) }.joined()
    }

    private static func isNormal(_ path: String) -> Bool {
        // Of the component so far; -1 in front of the first slash.
        var count = -1
        var isDot = false
        for byte in path.utf8 {
            guard byte != UInt8(ascii: "/") else {
                if count == 0 || count == 1 && isDot { return false }
                count = 0
                continue
            }
            if count < 0 { return false }
            isDot = count == 0 && byte == UInt8(ascii: ".")
            count += 1
        }
        return count > 1 || count == 1 && !isDot
    }
}
