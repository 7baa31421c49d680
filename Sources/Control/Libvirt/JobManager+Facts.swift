import ServerInterface

/// What is known of a domain without asking anything that may hang.
struct DomainFacts: Sendable {
    var definition: DomainDefinition
    var isStored: Bool
    /// Connections to its live exports.
    var clientCount: Int
    var checkpointCount: Int
    var jobCount: Int
}

extension JobManager {
    /// The domain of a name or uuid; nil when there is none.
    func facts(ofDomain text: String) async -> DomainFacts? {
        guard let domain = domains[name(ofDomain: text)] else { return nil }
        return await facts(of: domain)
    }

    /// The domain of a name; nil when there is none.
    func facts(ofDomainNamed name: String) async -> DomainFacts? {
        guard let domain = domains[name] else { return nil }
        return await facts(of: domain)
    }

    /// A line for each disk of a domain that is not served although it has media.
    func problems(ofDomain name: String) -> [String] { domains[name]?.problems ?? [] }

    /// All domains, by name.
    func allFacts() async -> [DomainFacts] {
        var all: [DomainFacts] = []
        for domain in domains.values.sorted(by: { $0.definition.name < $1.definition.name }) {
            all.append(await facts(of: domain))
        }
        return all
    }

    private func facts(of domain: ManagedDomain) async -> DomainFacts {
        var facts = DomainFacts(
            definition: domain.definition, isStored: domain.isStored, clientCount: 0,
            checkpointCount: domain.checkpoints.names.count,
            jobCount: jobs.values.count { $0.domain == domain.definition.name })
        for case .attached(let id) in domain.attachments.values {
            guard let status = try? await engine.diskStatus(id) else { continue }
            facts.clientCount += status.clientCount
        }
        return facts
    }
}
