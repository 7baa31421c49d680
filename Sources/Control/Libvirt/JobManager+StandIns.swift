import Foundation
import ServerInterface

/// Images that stand in for disks in what backup tools are shown.
extension JobManager {
    /// Where they lie; nobody but this server writes there.
    nonisolated var standInDirectory: String { settings.runDirectory + "/stand-ins" }

    /// The domain's XML in which the disks that are tracked are qcow2 images (`BackupToolXML`),
    /// each of which is there and has its disk's size when this returns.
    ///
    /// - Parameters:
    ///   - machineXML: another description of the domain, from the software that runs its machine:
    ///     of that, disks that are reached through live exports of this server are meant. Nil means
    ///     its own.
    ///   - places: where those exports are reached.
    ///   - showsSecrets: passwords stay in.
    /// - Throws: 38 when an image cannot be written.
    package func backupToolXML(
        of name: String, machineXML: String? = nil, places: LivePlaces = LivePlaces([]),
        showsSecrets: Bool = false
    ) async throws(ControlError) -> String {
        await retryFailedDisks(of: name)
        let domain = try domain(name)
        var paths: [String: String] = [:]
        var exports: [String: String] = [:]
        for disk in domain.definition.disks where disk.isBackedUpByTools {
            guard let path = try await standIn(for: disk, of: domain) else { continue }
            paths[disk.target] = path
            exports[disk.target] = domain.definition.liveExportName(target: disk.target)
        }
        return try BackupToolXML.text(
            of: machineXML ?? domain.definition.xml,
            BackupToolXML.Options(
                standIns: paths, liveExports: machineXML == nil ? nil : exports, places: places,
                showsSecrets: showsSecrets))
    }

    /// The target of the disk that a client names: by its target, its source, or the stand-in that
    /// it was shown.
    package func diskTarget(named disk: String, of name: String) throws(ControlError) -> String? {
        let domain = try domain(name)
        if let found = domain.disk(disk) { return found.target }
        return domain.definition.disks.first {
            standInPath(of: domain.definition, target: $0.target) == disk
        }?.target
    }

    /// The path by which clients know a disk, since the XML that they are shown has it: its
    /// stand-in's, or its source's.
    func shownPath(of target: String, in definition: DomainDefinition) -> String? {
        let path = standInPath(of: definition, target: target)
        if standIns[path] != nil { return path }
        return definition.disks.first { $0.target == target }?.path
    }

    /// Refuses a description in which a stand-in is taken for a disk: a machine would run on it.
    func refuseStandIns(in definition: DomainDefinition) throws(ControlError) {
        for disk in definition.disks {
            guard let path = disk.path ?? disk.unserved?.source,
                BackupPlanner.lexicallyNormal(path).hasPrefix(standInDirectory + "/")
            else { continue }
            throw .standInAsDisk(disk.target, path: path)
        }
    }

    /// Forgets the images of a domain: they are written again when somebody asks.
    func removeStandIns(of definition: DomainDefinition) {
        let directory = standInDirectory(of: definition)
        standIns = standIns.filter { !$0.key.hasPrefix(directory + "/") }
        // What stays can be read by nobody: it has an export behind it that is gone.
        try? FileManager.default.removeItem(atPath: directory)
    }

    /// All of them: their exports go with the server.
    func removeStandIns() {
        standIns = [:]
        try? FileManager.default.removeItem(atPath: standInDirectory)
    }

    private func standInDirectory(of definition: DomainDefinition) -> String {
        "\(standInDirectory)/\(definition.uuid)"
    }

    private func standInPath(of definition: DomainDefinition, target: String) -> String {
        "\(standInDirectory(of: definition))/\(target).qcow2"
    }

    /// Nil for a disk that none can stand in for.
    private func standIn(
        for disk: DomainDisk, of domain: ManagedDomain
    ) async throws(ControlError) -> String? {
        let definition = domain.definition
        let path = standInPath(of: definition, target: disk.target)
        // A disk that cannot be opened now is still one of the machine's: its backups are refused
        // with the reason, not left out without a word.
        guard case .attached(let id) = domain.attachments[disk.target],
            let status = try? await engine.diskStatus(id)
        else { return path }
        let uri = ExportURI.text(
            endpoint: settings.liveEndpoint,
            name: definition.liveExportName(target: disk.target))
        guard let image = StandInImage(sizeBytes: status.sizeBytes, backing: uri) else {
            return nil
        }
        if standIns[path] == image, FileManager.default.fileExists(atPath: path) { return path }
        try write(image, to: path, in: standInDirectory(of: definition))
        standIns[path] = image
        return path
    }

    /// Replaced in one step: readers of the old one keep it.
    private func write(
        _ image: StandInImage, to path: String, in directory: String
    ) throws(ControlError) {
        let files = FileManager.default
        let temporary = path + ".new"
        do {
            try files.createDirectory(
                atPath: directory, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o755])
            _ = try SystemCalls.unlink(temporary)
            guard
                files.createFile(
                    atPath: temporary, contents: nil, attributes: [.posixPermissions: 0o600]),
                let file = FileHandle(forWritingAtPath: temporary)
            else { throw CocoaError(.fileWriteUnknown) }
            defer { try? file.close() }
            for piece in image.pieces {
                try file.seek(toOffset: piece.offset)
                try file.write(contentsOf: Data(piece.bytes))
            }
            try file.truncate(atOffset: image.fileBytes)
            try files.setAttributes([.posixPermissions: 0o444], ofItemAtPath: temporary)
            try SystemCalls.rename(temporary, to: path)
        } catch let error as SystemCalls.Failure {
            throw .standInNotWritten(path, detail: error.text)
        } catch {
            throw .standInNotWritten(path, detail: error.localizedDescription)
        }
    }
}

extension DomainDisk {
    /// Whether a backup tool can have incremental backups of it.
    fileprivate var isBackedUpByTools: Bool {
        isTrackable && (device == "disk" || device == "lun")
    }
}
