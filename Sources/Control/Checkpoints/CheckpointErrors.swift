/// Errors of a checkpoint or of a request for one.
extension ControlError {
    /// The name is taken.
    package static func checkpointExists(_ name: String) -> ControlError {
        ControlError(
            .operationFailed, code: "checkpoint-exists", status: 409,
            detail: "domain moment \(name) already exists")
    }

    /// The disk's chain does not hold the checkpoint that its backup is to start from.
    package static func checkpointUnusable(_ name: String, disk target: String) -> ControlError {
        ControlError(
            .checkpointInconsistent, code: "checkpoint-unusable", status: 409,
            detail: "missing or broken bitmap '\(name)' for disk '\(target)'")
    }

    /// The job that the checkpoint was made with has not ended well, so it is no base.
    package static func checkpointUnready(
        _ name: String, disk target: String, reason: String
    ) -> ControlError {
        ControlError(
            .checkpointInconsistent, code: "checkpoint-unusable", status: 409,
            detail: "no backup of disk '\(target)' can start from checkpoint '\(name)': \(reason)")
    }

    /// A failed backup's checkpoint is to be made known again.
    package static func checkpointBeingTakenBack(_ name: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "checkpoint-taken-back", status: 409,
            detail: "checkpoint '\(name)' was made with a backup that did not end well, and is "
                + "still being taken back")
    }

    /// A root was asked for its parent.
    package static func checkpointWithoutParent(_ name: String) -> ControlError {
        ControlError(
            .noDomainCheckpoint, code: "checkpoint-without-parent", status: 404,
            detail: "checkpoint '\(name)' does not have a parent")
    }

    static func checkpointNameTooLong(_ name: String) -> ControlError {
        ControlError(
            .xmlError, code: "checkpoint-name-too-long", status: 400,
            detail: "checkpoint name '\(name)' is longer than "
                + "\(CheckpointMetadata.nameBytesMax) bytes")
    }

    static var checkpointWithoutName: ControlError {
        ControlError(
            .xmlError, code: "checkpoint-name-missing", status: 400,
            detail: "a redefined checkpoint must have a name")
    }

    static var checkpointWithoutTime: ControlError {
        ControlError(
            .internalError, code: "creation-time-missing", status: 400,
            detail: "missing creationTime from existing checkpoint")
    }

    static func checkpointOwnParent(_ name: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "checkpoint-parent-invalid", status: 400,
            detail: "cannot set moment \(name) as its own parent")
    }

    static func checkpointParentNotFound(_ parent: String, of name: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "checkpoint-parent-invalid", status: 400,
            detail: "parent \(parent) for moment \(name) not found")
    }

    static func checkpointCycle(_ name: String, parent: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "checkpoint-parent-invalid", status: 400,
            detail: "parent \(parent) would create cycle to \(name)")
    }

    static func checkpointOfOtherDomain(_ name: String, uuid: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "checkpoint-uuid-mismatch", status: 400,
            detail: "definition for checkpoint \(name) must use uuid \(uuid)")
    }

    static var checkpointDisksTooMany: ControlError {
        ControlError(
            .unsupportedConfiguration, code: "checkpoint-disks-too-many", status: 400,
            detail: "too many disk checkpoint requests for domain")
    }

    static var checkpointWithoutDisks: ControlError {
        ControlError(
            .unsupportedConfiguration, code: "domain-without-disks", status: 422,
            detail: "domain must have at least one disk to perform checkpoints")
    }

    static func diskEmptyOrReadOnly(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-empty-or-readonly", status: 422,
            detail: "disk '\(target)' is empty or readonly")
    }

    static func bitmapMustMatch(disk target: String, checkpoint: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "bitmap-name-mismatch", status: 400,
            detail: "bitmap for disk '\(target)' must match checkpoint name '\(checkpoint)'")
    }

    /// The domain cannot go while it has checkpoints.
    package static func domainHasCheckpoints(_ count: Int) -> ControlError {
        ControlError(
            .operationInvalid, code: "domain-has-checkpoints", status: 409,
            detail: "cannot delete inactive domain with \(count) checkpoints")
    }
}
