import NBDServer

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

/// The size of a disk in its three senses, in bytes.
struct BlockFigures: Sendable, Hashable {
    /// As the machine sees it.
    var capacity: UInt64
    /// Room that is taken on the storage.
    var allocation: UInt64
    /// Where the source ends.
    var physical: UInt64
}

extension JobManager {
    /// The size of a disk, which is named by its target or source path.
    ///
    /// - Throws: 8 for an unknown disk, 1 for one that is not served, and for storage that does not
    ///   answer in time.
    func blockInfo(_ name: String, of domainName: String) async throws(ControlError) -> BlockFigures
    {
        let domain = try domain(domainName)
        guard let disk = domain.disk(name) else {
            throw ControlError(
                .invalidArgument, code: "disk-not-found", status: 404,
                detail: "invalid path \(name) not assigned to domain")
        }
        guard let path = disk.path, case .attached(let id) = domain.attachments[disk.target],
            let status = try? await engine.diskStatus(id)
        else {
            throw ControlError(
                .operationFailed, code: "disk-not-served", status: 409,
                detail: "disk '\(disk.target)' does not currently have a source assigned")
        }
        let size = status.sizeBytes
        guard disk.kind == .file else {
            return BlockFigures(capacity: size, allocation: size, physical: size)
        }
        let look = await storage.run(
            at: .of(path), what: "'\(path)'", .begin(milliseconds: settings.storageMilliseconds)
        ) { .success(SystemCalls.room(of: path)) }
        guard case .success(let room?) = look else {
            return BlockFigures(capacity: size, allocation: size, physical: size)
        }
        return BlockFigures(
            capacity: size, allocation: room.allocatedBytes, physical: room.sizeBytes)
    }
}
