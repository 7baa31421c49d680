/// What `disk-export-state` and `disk-import-state` answer.
package struct MoveView: Sendable, Hashable, Codable {
    /// One disk.
    package struct Disk: Sendable, Hashable, Codable {
        package var disk: String
        /// Counts the disk's moves.
        package var generation: UInt64
        /// Those that backups can start from, oldest first.
        package var checkpoints: [String]
        /// Why every block counts as changed; absent when only those do that are.
        package var allChanged: String?
    }

    /// The move's id.
    package var id: String
    package var domain: String
    package var file: String
    package var disks: [Disk]

    init(id: String, domain: String, file: String, disks: [Disk]) {
        self.id = id
        self.domain = domain
        self.file = file
        self.disks = disks
    }

    /// What was exported.
    init(_ state: DiskState, domain: String, file: String) {
        self.init(
            id: state.id, domain: domain, file: file,
            disks: state.disks.map {
                Disk(
                    disk: $0.disk, generation: $0.generation,
                    checkpoints: $0.layers.compactMap(\.checkpoint))
            })
    }
}

/// The body of a request to export disks' state.
package struct ExportStateBody: Sendable, Hashable, JSONBody {
    package static let keys = ["file", "disks", "force"]
    /// Absolute path.
    package var file: String
    /// Targets, or paths of sources; absent: all disks that can change.
    package var disks: [String]?
    package var force: Bool?

    package init(file: String, disks: [String]? = nil, force: Bool? = nil) {
        self.file = file
        self.disks = disks
        self.force = force
    }
}

/// The body of a request to import disks' state.
package struct ImportStateBody: Sendable, Hashable, JSONBody {
    package static let keys = ["file", "force", "unchanged"]
    /// Absolute path.
    package var file: String
    package var force: Bool?
    /// The caller knows that nobody has changed the disks.
    package var unchanged: Bool?

    package init(file: String, force: Bool? = nil, unchanged: Bool? = nil) {
        self.file = file
        self.force = force
        self.unchanged = unchanged
    }
}

extension ControlError {
    /// The disk, as it is, cannot go or come.
    static func cannotMove(_ disk: String, _ detail: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "disk-cannot-move", status: 409,
            detail: "disk '\(disk)': \(detail)")
    }

    /// The file cannot be read, is damaged, or of another domain.
    static func stateFileUnusable(_ path: String, _ detail: String) -> ControlError {
        ControlError(
            .operationFailed, code: "disk-state-unusable", status: 422,
            detail: "state of disks '\(path)': \(detail)")
    }

    /// The file cannot be written.
    static func stateFileNotWritten(_ path: String, _ detail: String) -> ControlError {
        ControlError(
            .systemError, code: "disk-state-not-written", status: 422,
            detail: "cannot write the state of disks '\(path)': \(detail)")
    }
}
