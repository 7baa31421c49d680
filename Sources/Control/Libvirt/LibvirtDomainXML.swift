/// The XML of a domain as libvirt's clients are given it.
enum LibvirtDomainXML {
    static func text(_ domain: LibvirtDomain, _ manager: JobManager) async throws -> String {
        try await manager.domainXML(domain.name)
    }
}
