/// The XML of a domain as libvirt's clients are given it.
enum LibvirtDomainXML {
    /// Flags of `virDomainGetXMLDesc` that make a difference.
    enum Flag {
        /// With secrets.
        static let secure: UInt32 = 1
        /// As it is defined: what is asked for so is going to be defined again.
        static let inactive: UInt32 = 2
    }

    /// Disks are shown as tools need them (docs/domain-xml.md), unless the definition is asked for.
    static func text(
        _ domain: LibvirtDomain, flags: UInt32, _ manager: JobManager
    ) async throws -> String {
        let showsSecrets = flags & Flag.secure != 0
        guard flags & Flag.inactive != 0 else {
            return try await manager.backupToolXML(of: domain.name, showsSecrets: showsSecrets)
        }
        let xml = try await manager.domainXML(domain.name)
        return showsSecrets ? xml : try BackupToolXML.withoutSecrets(xml)
    }
}
