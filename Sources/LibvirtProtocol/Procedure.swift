/// A procedure of libvirt's remote program by its number.
package struct Procedure: RawRepresentable, Sendable, Hashable {
    package let rawValue: Int32
    package init(rawValue: Int32) { self.rawValue = rawValue }
    private init(_ number: Int32) { rawValue = number }

    // The connection.
    package static let open = Procedure(1)
    package static let close = Procedure(2)
    package static let getType = Procedure(3)
    package static let getVersion = Procedure(4)
    package static let getMaxVcpus = Procedure(5)
    package static let nodeGetInfo = Procedure(6)
    package static let getCapabilities = Procedure(7)
    package static let getHostname = Procedure(59)
    package static let supportsFeature = Procedure(60)
    package static let authList = Procedure(66)
    package static let getURI = Procedure(110)
    package static let nodeGetSecurityModel = Procedure(122)
    package static let isSecure = Procedure(149)
    package static let getLibVersion = Procedure(157)
    package static let getDomainCapabilities = Procedure(342)
    package static let registerCloseCallback = Procedure(360)
    package static let unregisterCloseCallback = Procedure(361)
    package static let setIdentity = Procedure(419)

    // Domains.
    package static let domainGetXMLDesc = Procedure(14)
    package static let domainGetAutostart = Procedure(15)
    package static let domainGetInfo = Procedure(16)
    package static let domainGetMaxMemory = Procedure(17)
    package static let domainGetMaxVcpus = Procedure(18)
    package static let domainGetOSType = Procedure(19)
    package static let listDefinedDomains = Procedure(21)
    package static let domainLookupByID = Procedure(22)
    package static let domainLookupByName = Procedure(23)
    package static let domainLookupByUUID = Procedure(24)
    package static let numOfDefinedDomains = Procedure(25)
    package static let listDomains = Procedure(37)
    package static let numOfDomains = Procedure(51)
    package static let domainBlockStats = Procedure(64)
    package static let domainGetSecurityLabel = Procedure(121)
    package static let domainIsActive = Procedure(150)
    package static let domainIsPersistent = Procedure(151)
    package static let domainHasManagedSaveImage = Procedure(183)
    package static let domainGetBlockInfo = Procedure(194)
    package static let domainGetVcpusFlags = Procedure(200)
    package static let domainIsUpdated = Procedure(202)
    package static let domainGetState = Procedure(212)
    package static let domainBlockStatsFlags = Procedure(243)
    package static let listAllDomains = Procedure(273)
    package static let listAllSnapshots = Procedure(274)
    package static let domainFSFreeze = Procedure(335)
    package static let domainFSThaw = Procedure(336)
    /// Not served here: read before they are passed on to a libvirtd behind the door.
    package static let domainCreateXML = Procedure(10)
    package static let domainDefineXML = Procedure(11)
    package static let domainDetachDevice = Procedure(13)
    package static let domainDetachDeviceFlags = Procedure(161)
    package static let domainUpdateDeviceFlags = Procedure(174)
    package static let domainCreateXMLWithFiles = Procedure(309)
    package static let domainDefineXMLFlags = Procedure(350)
    /// Not served here; called on a libvirtd behind the door.
    package static let domainAgentSetResponseTimeout = Procedure(420)
    package static let getAllDomainStats = Procedure(344)
    package static let domainGetMessages = Procedure(426)

    // Jobs and backups.
    package static let domainGetJobInfo = Procedure(163)
    package static let domainAbortJob = Procedure(164)
    package static let domainBlockJobAbort = Procedure(237)
    package static let domainGetBlockJobInfo = Procedure(238)
    package static let domainGetJobStats = Procedure(298)
    package static let domainSetBlockThreshold = Procedure(386)
    package static let domainBackupBegin = Procedure(421)
    package static let domainBackupGetXMLDesc = Procedure(422)
    package static let domainAbortJobFlags = Procedure(442)

    // Checkpoints.
    package static let checkpointCreateXML = Procedure(411)
    package static let checkpointGetXMLDesc = Procedure(412)
    package static let domainListAllCheckpoints = Procedure(413)
    package static let checkpointListAllChildren = Procedure(414)
    package static let checkpointLookupByName = Procedure(415)
    package static let checkpointGetParent = Procedure(416)
    package static let checkpointDelete = Procedure(417)

    // Events: how they are asked for.
    package static let eventRegister = Procedure(105)
    package static let eventDeregister = Procedure(106)
    package static let eventRegisterAny = Procedure(167)
    package static let eventDeregisterAny = Procedure(168)
    package static let eventCallbackRegisterAny = Procedure(316)
    package static let eventCallbackDeregisterAny = Procedure(317)

    // Events: the messages. Those of clients that know no callbacks have numbers of their own.
    package static let lifecycleLegacyEvent = Procedure(107)
    package static let blockJobLegacyEvent = Procedure(241)
    package static let lifecycleEvent = Procedure(318)
    package static let blockJobEvent = Procedure(326)
    package static let blockJob2Event = Procedure(339)
    package static let jobCompletedEvent = Procedure(363)
    package static let blockThresholdEvent = Procedure(385)

    /// The name, `DOMAIN_LOOKUP_BY_NAME`; nil for a number that is not known.
    package var name: Substring? { ProcedureNames.name(of: rawValue) }

    /// The function of libvirt's C library that calls it.
    package var function: String { ProcedureNames.function(of: rawValue) }
}

/// A feature that clients ask for at connect.
package enum LibvirtFeature {
    /// Typed parameters may be strings.
    package static let parameterStrings: Int32 = 9
    package static let keepalive: Int32 = 10
    /// Event registrations have numbers, and may be of one domain.
    package static let eventCallback: Int32 = 14
    package static let closeCallback: Int32 = 15
}
