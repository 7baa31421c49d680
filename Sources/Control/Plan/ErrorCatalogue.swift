/// Error numbers and category texts that clients of libvirt branch on (`virterror.h`).
package enum ErrorCategory: Int, Sendable, CaseIterable {
    case internalError = 1
    case invalidArgument = 8
    case operationFailed = 9
    case xmlError = 27
    case xmlDetail = 35
    case systemError = 38
    case noDomain = 42
    case operationInvalid = 55
    case unsupportedConfiguration = 67
    case operationTimeout = 68
    case operationUnsupported = 84
    case xmlInvalidSchema = 92
    case noDomainCheckpoint = 103
    case noDomainBackup = 104
    case checkpointInconsistent = 109

    /// Text in front of the detail; empty if the detail needs none.
    package var prefix: String {
        switch self {
        case .internalError: "internal error: "
        case .invalidArgument: "invalid argument: "
        case .operationFailed: "operation failed: "
        case .xmlError: "XML error: "
        case .xmlDetail, .systemError: ""
        case .noDomain: "Domain not found: "
        case .operationInvalid: "Requested operation is not valid: "
        case .unsupportedConfiguration: "unsupported configuration: "
        case .operationTimeout: "Timed out during operation: "
        case .operationUnsupported: "Operation not supported: "
        case .xmlInvalidSchema: "XML document failed to validate against schema: "
        case .noDomainCheckpoint: "Domain checkpoint not found: "
        case .noDomainBackup: "Domain backup job id not found: "
        case .checkpointInconsistent: "checkpoint inconsistent: "
        }
    }
}

extension ControlError {
    /// Makes an error of a libvirt category; the message is the category's prefix and `detail`.
    package init(_ category: ErrorCategory, code: String, status: Int, detail: String) {
        self.init(
            code: code, libvirtCode: category.rawValue, message: category.prefix + detail,
            httpStatus: status)
    }

    /// A value of the request is wrong: `what` names it, `detail` says why.
    package static func invalidArgument(what: String, detail: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "invalid-argument", status: 400, detail: "\(what): \(detail)")
    }

    /// Something that should hold does not.
    package static func internalError(_ detail: String) -> ControlError {
        ControlError(.internalError, code: "internal-error", status: 500, detail: detail)
    }

    /// A C library could not allocate.
    package static var outOfMemory: ControlError {
        ControlError(.internalError, code: "out-of-memory", status: 500, detail: "out of memory")
    }

    /// A configuration that is understood and cannot be had.
    package static func unsupportedConfiguration(_ detail: String) -> ControlError {
        ControlError(
            .unsupportedConfiguration, code: "unsupported-configuration", status: 422,
            detail: detail)
    }

    /// An operation that does not exist here, or not yet.
    package static func operationUnsupported(_ detail: String) -> ControlError {
        ControlError(
            .operationUnsupported, code: "operation-unsupported", status: 422, detail: detail)
    }

    /// The text is no XML, or XML that is refused before it is understood.
    package static func xmlMalformed(document: String, line: Int, detail: String) -> ControlError {
        ControlError(
            .xmlDetail, code: "xml-malformed", status: 400,
            detail: "(\(document)):\(line): \(detail)")
    }

    /// The document is not of the form its schema describes.
    package static func xmlSchemaViolation(schema: String, detail: String) -> ControlError {
        ControlError(
            .xmlInvalidSchema, code: "xml-invalid", status: 400, detail: "\(schema): \(detail)")
    }

    /// A value inside a valid document is wrong.
    package static func xmlError(_ detail: String) -> ControlError {
        ControlError(.xmlError, code: "xml-value-invalid", status: 400, detail: detail)
    }

    package static func domainNotFound(_ name: String) -> ControlError {
        ControlError(
            .noDomain, code: "domain-not-found", status: 404,
            detail: "no domain with matching name '\(name)'")
    }

    package static func domainExists(_ name: String) -> ControlError {
        ControlError(
            .operationFailed, code: "domain-exists", status: 409,
            detail: "domain '\(name)' is already defined")
    }

    /// The domain cannot be changed or removed while jobs run on it.
    package static func domainBusy(_ name: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "domain-busy", status: 409,
            detail: "domain '\(name)' has running backup jobs, end them first")
    }

    /// Nothing to show: no backup job runs on the domain.
    package static var noJob: ControlError {
        ControlError(
            .noDomainBackup, code: "no-job", status: 404, detail: "no domain backup job present")
    }

    /// Nothing to end or to abort: no job runs on the domain.
    package static var noActiveJob: ControlError {
        ControlError(
            .operationInvalid, code: "no-active-job", status: 404,
            detail: "no job is active on the domain")
    }

    package static func jobNotFound(_ id: String) -> ControlError {
        ControlError(
            .noDomainBackup, code: "job-not-found", status: 404,
            detail: "no backup job with id '\(id)'")
    }

    package static func jobAmbiguous(domain: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "job-ambiguous", status: 409,
            detail: "several jobs run on domain '\(domain)': give --job")
    }

    /// The base of an incremental backup is not a checkpoint of the domain.
    package static func checkpointNotFound(_ name: String, disk target: String) -> ControlError {
        ControlError(
            .noDomainCheckpoint, code: "checkpoint-not-found", status: 404,
            detail: "Checkpoint '\(name)' for incremental backup of disk '\(target)' not found")
    }

    package static func checkpointNotFound(_ name: String) -> ControlError {
        ControlError(
            .noDomainCheckpoint, code: "checkpoint-not-found", status: 404,
            detail: "no domain checkpoint with matching name '\(name)'")
    }
}
