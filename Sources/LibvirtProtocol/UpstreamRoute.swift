/// Who answers a procedure when there is a libvirtd behind the door.
///
/// Only procedures of ``ProcedureTable`` are asked about: all others, those of other programs and
/// every part of a stream are passed on as they are.
package enum UpstreamRoute: Sendable, Hashable {
    /// Ours alone: libvirtd never hears of it.
    case ours
    /// Libvirtd alone.
    case passed
    /// Ours when the domain that is named first is one of ours, else libvirtd's.
    case oursOnOurDomains
    /// Libvirtd's; ours when it does not know the domain and we do.
    case upstreamElseOurs
    /// Libvirtd's; ours on our domains when it answers with any error.
    case oursOnAnyError
    /// Ours on our domains when there is a job to speak of, else libvirtd's.
    case oursWhenJob
    /// Both, each in its own way.
    case merged

    /// The route of a procedure.
    package static func of(_ procedure: Procedure) -> UpstreamRoute {
        table[procedure] ?? .passed
    }

    /// The routes of all procedures that are served here; a test holds them against the table.
    package static let table: [Procedure: UpstreamRoute] = {
        var table: [Procedure: UpstreamRoute] = [:]
        for (route, procedures) in byRoute {
            for procedure in procedures { table[procedure] = route }
        }
        return table
    }()

    private static let byRoute: [(UpstreamRoute, [Procedure])] = [
        (.ours, [.authList, .close, .getURI]),
        // The machine's host and hypervisor are libvirtd's to describe, and its connection's end is
        // its to tell. Legacy lists hold names and numbers only, which we cannot merge by uuid.
        (
            .passed,
            [
                .setIdentity, .registerCloseCallback, .unregisterCloseCallback, .getType,
                .getVersion, .getLibVersion, .getHostname, .isSecure, .getMaxVcpus, .nodeGetInfo,
                .getCapabilities, .getDomainCapabilities, .nodeGetSecurityModel, .numOfDomains,
                .listDomains, .numOfDefinedDomains, .listDefinedDomains,
            ]
        ),
        // A machine's migration must not end because a tool gives up a backup that has ended
        // already: aborting stays ours even where we have no job. And a domain's backups can be had
        // while its machine is off, which is what tools ask "is active" for.
        (
            .oursOnOurDomains,
            [
                .domainAbortJob, .domainAbortJobFlags, .domainIsActive, .domainBackupBegin,
                .domainBackupGetXMLDesc, .checkpointCreateXML, .checkpointGetXMLDesc,
                .domainListAllCheckpoints, .checkpointListAllChildren, .checkpointLookupByName,
                .checkpointGetParent, .checkpointDelete,
            ]
        ),
        (
            .upstreamElseOurs,
            [
                .domainLookupByID, .domainLookupByName, .domainLookupByUUID, .domainGetState,
                .domainGetInfo, .domainIsPersistent, .domainIsUpdated,
                .domainGetAutostart, .domainGetOSType, .domainGetMaxMemory, .domainGetMaxVcpus,
                .domainGetVcpusFlags, .domainHasManagedSaveImage, .domainGetSecurityLabel,
                .domainGetMessages, .domainFSFreeze, .domainFSThaw, .domainBlockStats,
                .domainBlockStatsFlags,
            ]
        ),
        (.oursOnAnyError, [.domainGetBlockInfo]),
        (.oursWhenJob, [.domainGetJobInfo, .domainGetJobStats]),
        (
            .merged,
            [
                .open, .supportsFeature, .listAllDomains, .domainGetXMLDesc, .getAllDomainStats,
                .domainGetBlockJobInfo, .domainBlockJobAbort, .domainSetBlockThreshold,
                .eventRegister, .eventDeregister, .eventRegisterAny, .eventDeregisterAny,
                .eventCallbackRegisterAny, .eventCallbackDeregisterAny,
            ]
        ),
    ]
}

/// The serials of calls that are made on a client's upstream connection for the door itself.
///
/// A client's own calls are passed on with the serials it has chosen, so replies and streams need
/// no table. These two ranges never meet: a client counts from 0, and one that sends a serial of
/// ours is refused.
package enum UpstreamSerial {
    /// The smallest serial of ours.
    package static let first: UInt32 = 0xF000_0000

    /// Whether the serial is one of ours.
    package static func isOurs(_ serial: UInt32) -> Bool { serial >= first }

    /// The serial after `serial`.
    package static func next(_ serial: UInt32) -> UInt32 {
        serial == UInt32.max ? first : serial + 1
    }
}

/// The URI to open at libvirtd when a client has opened the door's.
package enum UpstreamURI {
    /// Drivers that a libvirtd may have; any other name is the door's own.
    private static let drivers: Set<String> = [
        "qemu", "lxc", "xen", "test", "bhyve", "ch", "vbox", "vz", "parallels", "openvz",
    ]

    /// The URI that libvirtd is opened with.
    ///
    /// `configured` is the one that the settings name, if any. A client's own is kept when libvirtd
    /// could know its driver; otherwise it is empty, which makes libvirtd choose its default.
    package static func name(client: String, configured: String?) -> String {
        if let configured { return configured }
        guard let colon = client.firstIndex(of: ":") else { return "" }
        let scheme = client[..<colon].prefix { $0 != "+" }.lowercased()
        return drivers.contains(scheme) ? client : ""
    }
}
