/// Errors of a backup request or of the disks it names.
extension ControlError {
    package static func unknownDisk(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-not-found", status: 404,
            detail: "no disk named '\(target)'")
    }

    /// Two bitmaps of one export have the same name.
    static func bitmapNameTaken(_ name: String, disk target: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "bitmap-name-taken", status: 400,
            detail: "disk '\(target)' has two bitmaps named '\(name)': give one of them another"
                + " name=")
    }

    package static func diskListedTwice(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-listed-twice", status: 400,
            detail: "disk '\(target)' specified twice")
    }

    /// The drive is empty.
    package static func diskWithoutMedia(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-without-media", status: 422,
            detail: "disk '\(target)' has no media")
    }

    /// A disk that is known and that cannot be served was asked for.
    package static func diskNotServed(_ target: String, reason: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-not-served", status: 422,
            detail: "disk '\(target)' is not served: \(reason)")
    }

    /// A stand-in was given as a disk.
    package static func standInAsDisk(_ target: String, path: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "stand-in-as-disk", status: 422,
            detail: "source '\(path)' of disk '\(target)' only stands in for a disk that is "
                + "served: name the disk's own source (nbdpull dumpxml, virsh dumpxml --inactive)")
    }

    package static func standInNotWritten(_ path: String, detail: String) -> ControlError {
        ControlError(
            .systemError, code: "stand-in-not-written", status: 500,
            detail: "failed to create image file '\(path)': \(detail)")
    }

    package static var domainWithoutDisks: ControlError {
        ControlError(
            .unsupportedConfiguration, code: "domain-without-disks", status: 422,
            detail: "domain must have at least one disk to perform backup")
    }

    package static var noDisksSelected: ControlError {
        ControlError(
            .unsupportedConfiguration, code: "no-disks-selected", status: 422,
            detail: "no disks selected for backup")
    }

    /// The disk's source is of a kind or format that cannot be served.
    package static func diskUnsupported(_ target: String, detail: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "disk-unsupported", status: 422,
            detail: "disk '\(target)': \(detail)")
    }

    /// `backupmode='incremental'` without a checkpoint to start from.
    package static func incrementalWithoutBase(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "incremental-without-base", status: 400,
            detail: "'incremental' backup mode of disk '\(target)' requires setting "
                + "'incremental' field for disk or backup")
    }

    /// A target of a format that nothing here writes.
    package static func targetFormatUnsupported(
        _ target: String, format: String
    ) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "target-format-unsupported", status: 422,
            detail:
                "target format '\(format)' of disk '\(target)' is not supported, use 'qcow2' or "
                + "'raw'")
    }

    package static func targetEncryptionUnsupported(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "target-encryption-unsupported", status: 422,
            detail: "encrypted target of disk '\(target)' is not supported")
    }

    /// A raw target cannot tell what has changed from what has not.
    package static func incrementalRaw(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "incremental-raw", status: 422,
            detail:
                "incremental push backup of disk '\(target)' is not supported for target format "
                + "'raw', use <driver type='qcow2'/>")
    }

    /// What an image holds already would hide its base where nothing has changed.
    package static func incrementalKept(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "incremental-kept", status: 422,
            detail: "incremental push backup of disk '\(target)' needs a new image: leave out "
                + "--reuse-external")
    }

    /// Only qcow2 targets can be compressed.
    package static func compressedRaw(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "compressed-raw", status: 422,
            detail: "target of disk '\(target)' cannot be compressed in format 'raw', use "
                + "<driver type='qcow2'/>")
    }

    /// `what` means something for a push only.
    package static func needsPush(_ what: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "needs-push", status: 400,
            detail: "\(what): it needs a backup in push mode")
    }

    package static func transportUnsupported(_ transport: String) -> ControlError {
        guard transport == "rdma" else {
            return ControlError(
                .operationUnsupported, code: "transport-unsupported", status: 422,
                detail: "transport='\(transport)' is not supported yet for <server>, "
                    + "use 'unix' or 'tcp'")
        }
        return ControlError(
            .unsupportedConfiguration, code: "transport-unsupported", status: 422,
            detail: "transport rdma is not supported for <server>")
    }

    /// `tls='yes'` where no certificates are configured.
    package static var tlsNotConfigured: ControlError {
        ControlError(
            .operationInvalid, code: "tls-not-configured", status: 422,
            detail: "backup TLS directory not configured")
    }

    package static func encryptionUnsupported(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "scratch-encryption-unsupported", status: 422,
            detail: "encrypted scratch of disk '\(target)' is not supported")
    }

    package static func portInvalid(_ port: String) -> ControlError {
        ControlError(
            .xmlError, code: "port-invalid", status: 400,
            detail: "port '\(port)' of <server> is not between 0 and 65535")
    }

    package static func socketPathTooLong(_ path: String, bytesMax: Int) -> ControlError {
        ControlError(
            .xmlError, code: "socket-path-too-long", status: 400,
            detail: "backup socket path '\(path)' is longer than \(bytesMax) bytes")
    }

    /// Two disks of a job, or two jobs on one listener, would share an export name.
    package static func exportNameTaken(_ name: String) -> ControlError {
        ControlError(
            .internalError, code: "export-name-taken", status: 409,
            detail: "NBD server already has export named '\(name)'")
    }

    package static func exportNameTooLong(_ target: String, bytesMax: Int) -> ControlError {
        ControlError(
            .xmlError, code: "export-name-too-long", status: 400,
            detail: "exportname or exportbitmap of disk '\(target)' is longer than "
                + "\(bytesMax) bytes")
    }

    package static func scratchNameUnknown(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "scratch-missing", status: 422,
            detail: "refusing to generate file name for disk '\(target)'")
    }

    /// A push of a device to a device has no place where scratch could lie.
    package static func scratchPlaceUnknown(_ target: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "scratch-missing", status: 422,
            detail: "no place for scratch of disk '\(target)': start the server with --scratch-dir")
    }

    package static func scratchExists(path: String, disk target: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "scratch-exists", status: 409,
            detail: "store '\(path)' for backup of '\(target)' exists")
    }

    /// The scratch named is a disk of the domain and would be overwritten.
    package static func scratchIsSource(
        path: String, disk target: String, source: String
    ) -> ControlError {
        ControlError(
            .invalidArgument, code: "scratch-is-source", status: 409,
            detail: "store '\(path)' for backup of '\(target)' is the source of disk '\(source)'")
    }

    /// A `<scratch>` of a network disk that leads nowhere.
    package static func scratchAddressInvalid(
        _ target: String, detail: String
    ) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "scratch-address-invalid", status: 400,
            detail: "scratch of disk '\(target)' cannot be reached: \(detail)")
    }

    package static func scratchNotCreated(path: String, errorText: String) -> ControlError {
        ControlError(
            .systemError, code: "scratch-not-created", status: 422,
            detail: "failed to create image file '\(path)': \(errorText)")
    }
}
