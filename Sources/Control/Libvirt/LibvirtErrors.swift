import LibvirtProtocol

extension WireError {
    /// An error of a handler.
    init(any error: any Error) {
        switch error {
        case let error as WireError: self = error
        case let error as ControlError: self.init(error)
        case is XDRError: self = .malformed
        default: self.init(ControlError.internalError("\(error)"))
        }
    }

    /// An error of the manager, with the part of libvirt that clients are told it comes from.
    init(_ error: ControlError) {
        let prefix = ErrorCategory(rawValue: error.libvirtCode)?.prefix ?? ""
        let isWhole = error.message.hasPrefix(prefix)
        self.init(
            code: Int32(clamping: error.libvirtCode), domain: Self.domain(of: error),
            prefix: isWhole ? prefix : "",
            detail: String(error.message.dropFirst(isWhole ? prefix.count : 0)))
    }

    /// Where libvirt finds out about this: its qemu driver, unless the table says otherwise.
    private static func domain(of error: ControlError) -> Int32 {
        if error.message.hasPrefix("(\(XMLSchema.checkpoint.documentLabel))") {
            return WireErrorDomain.checkpoint
        }
        return bySlug[error.code] ?? byCode[error.libvirtCode] ?? WireErrorDomain.qemu
    }

    /// The same error, found out while a checkpoint is read.
    init(inCheckpoint error: ControlError) {
        self.init(error)
        if Self.sharedWithBackups.contains(error.code) { domain = WireErrorDomain.checkpoint }
    }

    private static let sharedWithBackups: Set<String> = [
        "disk-listed-twice", "disk-not-found", "domain-without-disks",
    ]

    private static let byCode: [Int: Int32] = [
        ErrorCategory.xmlError.rawValue: WireErrorDomain.domain,
        ErrorCategory.xmlDetail.rawValue: WireErrorDomain.domain,
        ErrorCategory.xmlInvalidSchema.rawValue: WireErrorDomain.xml,
        ErrorCategory.operationTimeout.rawValue: WireErrorDomain.none,
    ]

    /// What libvirt finds out while it reads a definition.
    private static let bySlug: [String: Int32] = [
        "bitmap-name-mismatch": WireErrorDomain.qemu,
        "checkpoint-disks-too-many": WireErrorDomain.checkpoint,
        "checkpoint-exists": WireErrorDomain.domain,
        "checkpoint-name-missing": WireErrorDomain.checkpoint,
        "checkpoint-parent-invalid": WireErrorDomain.domain,
        "checkpoint-uuid-mismatch": WireErrorDomain.checkpoint,
        "creation-time-missing": WireErrorDomain.checkpoint,
        "disk-empty-or-readonly": WireErrorDomain.checkpoint,
        "disk-not-found": WireErrorDomain.domain,
        "disk-listed-twice": WireErrorDomain.domain,
        "disk-without-media": WireErrorDomain.domain,
        "domain-without-disks": WireErrorDomain.domain,
        "incremental-without-base": WireErrorDomain.domain,
    ]

    /// Flags that are not known, or not taken here.
    static func unsupportedFlags(_ flags: UInt32, function: String) -> WireError {
        WireError(
            code: WireErrorCode.invalidArgument, domain: WireErrorDomain.qemu, argument: "flags",
            of: function,
            "unsupported flags (0x\(String(flags, radix: 16))) in function \(function)")
    }

    /// There is no domain of a uuid, a name or a number.
    static func noDomain(_ detail: String) -> WireError {
        WireError(
            code: WireErrorCode.noDomain, domain: WireErrorDomain.qemu,
            prefix: "Domain not found: ", detail: detail)
    }

    /// The machine's agent is not to be reached from here.
    static let agentNotConfigured = WireError(
        code: WireErrorCode.argumentUnsupported, domain: WireErrorDomain.qemu,
        prefix: "argument unsupported: ", detail: "QEMU guest agent is not configured")
}
