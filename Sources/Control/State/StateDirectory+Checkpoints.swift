import Foundation

extension StateDirectory {
    /// The checkpoints of one domain as they are kept.
    package struct KeptCheckpoints: Sendable {
        package var records: [CheckpointMetadata] = []
        package var damaged: [DamagedFile] = []
        /// Names of the checkpoints whose files are damaged.
        package var damagedNames: Set<String> = []
        /// False when not even the names of the files could be read.
        package var isListed = true
    }

    private static let ending = ".state"

    private func checkpointsPath(_ uuid: String) -> String { "\(path)/checkpoints/\(uuid)" }
    private func disksPath(_ uuid: String) -> String { "\(path)/disks/\(uuid)" }

    // The schema's names have no slash and no leading dot: they are file names as they are.
    private func checkpointFile(_ name: String, _ uuid: String) -> String {
        "\(checkpointsPath(uuid))/\(name)\(Self.ending)"
    }

    /// Keeps a checkpoint of the domain with this uuid, replacing the one of the same name.
    package func save(_ checkpoint: CheckpointMetadata, of uuid: String) throws(ControlError) {
        let directory = checkpointsPath(uuid)
        do {
            if SystemCalls.identity(of: directory) == nil {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true,
                    attributes: [.posixPermissions: 0o700])
                try SystemCalls.syncDirectory(path + "/checkpoints")
            }
        } catch let failure as SystemCalls.Failure {
            throw Self.cannotWrite(directory, failure.text)
        } catch {
            throw Self.cannotWrite(directory, error.localizedDescription)
        }
        try save(kind: "checkpoint", checkpoint, to: checkpointFile(checkpoint.name, uuid))
    }

    /// Throws when a later version knows a checkpoint of this name: its bitmaps are not ours to
    /// drop.
    package func refuseNewerCheckpoint(_ name: String, of uuid: String) throws(ControlError) {
        try refuseNewer(checkpointFile(name, uuid))
    }

    /// Forgets a checkpoint.
    package func removeCheckpoint(_ name: String, of uuid: String) throws(ControlError) {
        let directory = checkpointsPath(uuid)
        guard SystemCalls.identity(of: directory) != nil else { return }
        try remove(checkpointFile(name, uuid), in: directory)
    }

    /// Every checkpoint kept of the domain with this uuid, whatever its phase.
    package func checkpoints(of uuid: String) -> KeptCheckpoints {
        var kept = KeptCheckpoints()
        let directory = checkpointsPath(uuid)
        guard SystemCalls.identity(of: directory) != nil else { return kept }
        let contents = load(kind: "checkpoint", CheckpointMetadata.self, from: directory)
        kept.records = contents.records
        kept.damaged = contents.damaged
        for file in contents.damaged {
            if file.path == directory { kept.isListed = false }
            kept.damagedNames.insert(file.name)
        }
        return kept
    }

    /// Forgets every checkpoint of the domain with this uuid.
    package func removeCheckpoints(of uuid: String) throws(ControlError) {
        for file in checkpoints(of: uuid).damaged where file.isNewer {
            try refuseNewer(file.path)
        }
        try removeTree(checkpointsPath(uuid))
    }

    /// Where the changes of one disk are tracked.
    package func trackingDirectory(of uuid: String, target: String) -> String {
        "\(disksPath(uuid))/\(target)"
    }

    /// Whether changes of the domain with this uuid were ever tracked here.
    package func hasTracking(of uuid: String) -> Bool {
        SystemCalls.identity(of: disksPath(uuid)) != nil
    }

    /// Makes the directory that holds the tracking directories of a domain.
    package func prepareTracking(of uuid: String) throws(ControlError) {
        if hasTracking(of: uuid) { return }
        do {
            try FileManager.default.createDirectory(
                atPath: disksPath(uuid), withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
        } catch {
            throw Self.cannotWrite(disksPath(uuid), error.localizedDescription)
        }
    }

    /// Removes the change tracking of one disk.
    package func removeTracking(of uuid: String, target: String) throws(ControlError) {
        try removeTree(trackingDirectory(of: uuid, target: target))
    }

    /// Gives the change tracking of one disk, which nobody has open, the place of another's, which
    /// is gone.
    package func renameTracking(
        of uuid: String, from source: String, to target: String
    ) throws(ControlError) {
        let path = trackingDirectory(of: uuid, target: source)
        guard SystemCalls.identity(of: path) != nil else { return }
        do throws(SystemCalls.Failure) {
            try SystemCalls.rename(path, to: trackingDirectory(of: uuid, target: target))
            try SystemCalls.syncDirectory(disksPath(uuid))
        } catch {
            throw Self.cannotWrite(path, error.text)
        }
    }

    /// The disks of the domain with this uuid whose changes were ever tracked here.
    package func trackedTargets(of uuid: String) throws(ControlError) -> [String] {
        guard hasTracking(of: uuid) else { return [] }
        do {
            return try FileManager.default.contentsOfDirectory(atPath: disksPath(uuid)).sorted()
        } catch {
            throw ControlError(
                .systemError, code: "state-not-read", status: 500,
                detail: "cannot read '\(disksPath(uuid))': \(error.localizedDescription)")
        }
    }

    /// Removes the change tracking of every disk of the domain with this uuid.
    package func removeTracking(of uuid: String) throws(ControlError) {
        try removeTree(disksPath(uuid))
    }

    /// Removes the tracking directories of disks that hold nothing; needs no descriptor.
    package func removeEmptyTracking(of uuid: String, targets: [String]) {
        for target in targets {
            SystemCalls.removeEmptyDirectory(trackingDirectory(of: uuid, target: target))
        }
        SystemCalls.removeEmptyDirectory(disksPath(uuid))
    }

    private func removeTree(_ directory: String) throws(ControlError) {
        guard SystemCalls.identity(of: directory) != nil else { return }
        do {
            try FileManager.default.removeItem(atPath: directory)
            try SystemCalls.syncDirectory((directory as NSString).deletingLastPathComponent)
        } catch let failure as SystemCalls.Failure {
            throw Self.cannotWrite(directory, failure.text)
        } catch {
            throw Self.cannotWrite(directory, error.localizedDescription)
        }
    }
}
