/// One procedure that is served: who may call it, its arguments and its results.
package struct ProcedureEntry: Sendable, Hashable {
    /// Who may call.
    package enum Access: Sendable, Hashable {
        /// Also before the connection is opened.
        case anybody
        /// Also on read-only connections: nothing changes.
        case readOnly
        /// Not on read-only connections.
        case readWrite
    }

    package let procedure: Procedure
    package let access: Access
    package let arguments: [XDRShape]
    package let results: [XDRShape]

    init(
        _ procedure: Procedure, _ access: Access = .readOnly, _ arguments: [XDRShape] = [],
        returns results: [XDRShape] = []
    ) {
        self.procedure = procedure
        self.access = access
        self.arguments = arguments
        self.results = results
    }
}

/// The table of the procedures that are served.
///
/// Control has a handler for each of them; whatever is not here is refused with libvirt's error 3.
package enum ProcedureTable {
    /// The whole table, family by family.
    package static let all = connection + domains + blocks + jobs + checkpoints + events

    /// The entry of a procedure; nil when it is not served.
    package static func entry(_ procedure: Procedure) -> ProcedureEntry? { byNumber[procedure] }

    private static let byNumber = Dictionary(
        all.map { ($0.procedure, $0) }, uniquingKeysWith: { first, _ in first })

    private static let connection = [
        ProcedureEntry(.authList, .anybody, returns: [.array([.int], limit: 20)]),
        ProcedureEntry(.supportsFeature, .anybody, [.int], returns: [.int]),
        ProcedureEntry(.open, .anybody, [.optionalString, .uint]),
        ProcedureEntry(.close, .anybody),
        ProcedureEntry(.setIdentity, .readOnly, [.parameters, .uint]),
        ProcedureEntry(.registerCloseCallback),
        ProcedureEntry(.unregisterCloseCallback),
        ProcedureEntry(.getType, returns: [.string]),
        ProcedureEntry(.getVersion, returns: [.uhyper]),
        ProcedureEntry(.getLibVersion, returns: [.uhyper]),
        ProcedureEntry(.getHostname, returns: [.string]),
        ProcedureEntry(.getURI, returns: [.string]),
        ProcedureEntry(.isSecure, returns: [.int]),
        ProcedureEntry(.getMaxVcpus, .readOnly, [.optionalString], returns: [.int]),
        // The model is 32 signs of one word each.
        ProcedureEntry(
            .nodeGetInfo,
            returns: Array(repeating: .int, count: 32) + [.uhyper]
                + Array(repeating: .int, count: 6)),
        ProcedureEntry(.getCapabilities, returns: [.string]),
        ProcedureEntry(
            .getDomainCapabilities, .readOnly,
            [.optionalString, .optionalString, .optionalString, .optionalString, .uint],
            returns: [.string]),
        ProcedureEntry(
            .nodeGetSecurityModel,
            returns: [.array([.int], limit: 1024), .array([.int], limit: 1024)]),
    ]

    private static let domains = [
        ProcedureEntry(.listAllDomains, .readOnly, [.int, .uint], returns: [.domains, .uint]),
        ProcedureEntry(.numOfDomains, returns: [.int]),
        ProcedureEntry(.listDomains, .readOnly, [.int], returns: [.array([.int], limit: 16_384)]),
        ProcedureEntry(.numOfDefinedDomains, returns: [.int]),
        ProcedureEntry(
            .listDefinedDomains, .readOnly, [.int], returns: [.array([.string], limit: 16_384)]),
        ProcedureEntry(.domainLookupByID, .readOnly, [.int], returns: [.domain]),
        ProcedureEntry(.domainLookupByName, .readOnly, [.string], returns: [.domain]),
        ProcedureEntry(.domainLookupByUUID, .readOnly, [.uuid], returns: [.domain]),
        ProcedureEntry(.domainGetXMLDesc, .readOnly, [.domain, .uint], returns: [.string]),
        ProcedureEntry(.domainGetState, .readOnly, [.domain, .uint], returns: [.int, .int]),
        ProcedureEntry(
            .domainGetInfo, .readOnly, [.domain],
            returns: [.uint, .uhyper, .uhyper, .uint, .uhyper]
        ),
        ProcedureEntry(.domainIsActive, .readOnly, [.domain], returns: [.int]),
        ProcedureEntry(.domainIsPersistent, .readOnly, [.domain], returns: [.int]),
        ProcedureEntry(.domainIsUpdated, .readOnly, [.domain], returns: [.int]),
        ProcedureEntry(.domainGetAutostart, .readOnly, [.domain], returns: [.int]),
        ProcedureEntry(.domainGetOSType, .readOnly, [.domain], returns: [.string]),
        ProcedureEntry(.domainGetMaxMemory, .readOnly, [.domain], returns: [.uhyper]),
        ProcedureEntry(.domainGetMaxVcpus, .readOnly, [.domain], returns: [.int]),
        ProcedureEntry(.domainGetVcpusFlags, .readOnly, [.domain, .uint], returns: [.int]),
        ProcedureEntry(
            .domainHasManagedSaveImage, .readOnly, [.domain, .uint], returns: [.int]),
        ProcedureEntry(
            .domainGetSecurityLabel, .readOnly, [.domain],
            returns: [.array([.int], limit: 4097), .int]),
        ProcedureEntry(
            .domainGetMessages, .readOnly, [.domain, .uint],
            returns: [.array([.string], limit: 1024)]),
        ProcedureEntry(
            .domainFSFreeze, .readWrite,
            [.domain, .array([.string], limit: LibvirtLimits.mountPointsMax), .uint],
            returns: [.int]),
        ProcedureEntry(
            .domainFSThaw, .readWrite,
            [.domain, .array([.string], limit: LibvirtLimits.mountPointsMax), .uint],
            returns: [.int]),
    ]

    private static let blocks = [
        ProcedureEntry(
            .domainGetBlockInfo, .readOnly, [.domain, .string, .uint],
            returns: [.uhyper, .uhyper, .uhyper]),
        ProcedureEntry(
            .domainBlockStats, .readOnly, [.domain, .string],
            returns: [.hyper, .hyper, .hyper, .hyper, .hyper]),
        ProcedureEntry(
            .domainBlockStatsFlags, .readOnly, [.domain, .string, .int, .uint],
            returns: [.parameters, .int]),
        ProcedureEntry(
            .getAllDomainStats, .readOnly, [.domains, .uint, .uint],
            returns: [.array([.domain, .parameters], limit: LibvirtLimits.domainsMax)]),
        ProcedureEntry(
            .domainSetBlockThreshold, .readWrite, [.domain, .string, .uhyper, .uint]),
    ]

    private static let jobs = [
        ProcedureEntry(
            .domainGetBlockJobInfo, .readOnly, [.domain, .string, .uint],
            returns: [.int, .int, .uhyper, .uhyper, .uhyper]),
        ProcedureEntry(.domainBlockJobAbort, .readWrite, [.domain, .string, .uint]),
        ProcedureEntry(
            .domainGetJobInfo, .readOnly, [.domain],
            returns: [.int] + Array(repeating: .uhyper, count: 11)),
        ProcedureEntry(
            .domainGetJobStats, .readOnly, [.domain, .uint], returns: [.int, .parameters]),
        ProcedureEntry(.domainAbortJob, .readWrite, [.domain]),
        ProcedureEntry(.domainAbortJobFlags, .readWrite, [.domain, .uint]),
        ProcedureEntry(
            .domainBackupBegin, .readWrite, [.domain, .string, .optionalString, .uint]),
        ProcedureEntry(
            .domainBackupGetXMLDesc, .readOnly, [.domain, .uint], returns: [.string]),
    ]

    private static let checkpoints = [
        ProcedureEntry(
            .checkpointCreateXML, .readWrite, [.domain, .string, .uint], returns: [.checkpoint]),
        ProcedureEntry(
            .checkpointGetXMLDesc, .readOnly, [.checkpoint, .uint], returns: [.string]),
        ProcedureEntry(
            .domainListAllCheckpoints, .readOnly, [.domain, .int, .uint],
            returns: [.checkpoints, .int]),
        ProcedureEntry(
            .checkpointListAllChildren, .readOnly, [.checkpoint, .int, .uint],
            returns: [.checkpoints, .int]),
        ProcedureEntry(
            .checkpointLookupByName, .readOnly, [.domain, .string, .uint], returns: [.checkpoint]),
        ProcedureEntry(
            .checkpointGetParent, .readOnly, [.checkpoint, .uint], returns: [.checkpoint]),
        ProcedureEntry(.checkpointDelete, .readWrite, [.checkpoint, .uint]),
    ]

    private static let events = [
        ProcedureEntry(.eventRegister, returns: [.int]),
        ProcedureEntry(.eventDeregister, returns: [.int]),
        ProcedureEntry(.eventRegisterAny, .readOnly, [.int]),
        ProcedureEntry(.eventDeregisterAny, .readOnly, [.int]),
        ProcedureEntry(
            .eventCallbackRegisterAny, .readOnly, [.int, .optionalDomain], returns: [.int]),
        ProcedureEntry(.eventCallbackDeregisterAny, .readOnly, [.int]),
    ]
}
