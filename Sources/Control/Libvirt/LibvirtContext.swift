import LibvirtProtocol
import ServerInterface
import Synchronization

/// A domain as the libvirt door shows it.
struct LibvirtDomain: Sendable {
    let definition: DomainDefinition
    /// Whether it outlives the server.
    let isPersistent: Bool
    /// Whether a machine is connected to one of its live exports: all that is known of its state.
    let isRunning: Bool
    let checkpointCount: Int
    let jobCount: Int
    /// Its number while it runs, else -1.
    let id: Int32
    /// What the client has named it by, when that is not ours to say.
    var given: WireDomain?

    var name: String { definition.name }

    var wire: WireDomain {
        given ?? WireDomain(name: name, uuid: UUIDText.bytes(definition.uuid), id: id)
    }
}

/// What all connections of the libvirt door share.
package final class LibvirtContext: Sendable {
    let manager: JobManager
    /// The libvirtd that runs the machines; nil: there is none.
    let upstream: UpstreamSettings?
    /// Where a machine reaches the live exports.
    let places: LivePlaces
    let host: HostFacts
    /// The longest reply, in bytes of its body.
    let replyBytesMax: Int
    /// Who has begun which job.
    let begunJobs = BegunJobs()
    let thresholds = ScratchThresholds()
    private let numbers = Mutex((byUUID: [String: Int32](), last: Int32(0)))

    /// `places` nil: only the endpoint that the manager knows.
    package init(
        manager: JobManager, upstream: UpstreamSettings? = nil, places: LivePlaces? = nil,
        replyBytesMax: Int = LibvirtLimits.replyBytesMax
    ) {
        self.replyBytesMax = replyBytesMax
        self.manager = manager
        self.places = places ?? LivePlaces([manager.settings.liveEndpoint])
        self.upstream = upstream
        host = HostFacts()
    }

    /// The domain that a client names.
    ///
    /// - Throws: 42 when there is none of that uuid.
    func domain(_ wire: WireDomain) async throws -> LibvirtDomain {
        let uuid = UUIDText.text(wire.uuid)
        guard let domain = await domain(uuid: uuid) else {
            throw WireError.noDomain("no domain with matching uuid '\(uuid)' (\(wire.name))")
        }
        return domain
    }

    /// The domain of a uuid.
    func domain(uuid: String) async -> LibvirtDomain? {
        await manager.facts(ofDomain: uuid).map(numbered)
    }

    /// The domain of a name; a text that spells a uuid is a name here, too.
    func domain(name: String) async -> LibvirtDomain? {
        await manager.facts(ofDomainNamed: name).map(numbered)
    }

    /// All domains, by name.
    func domains() async -> [LibvirtDomain] {
        await manager.allFacts().map(numbered)
    }

    private func numbered(_ facts: DomainFacts) -> LibvirtDomain {
        LibvirtDomain(
            definition: facts.definition, isPersistent: facts.isStored,
            isRunning: facts.clientCount > 0, checkpointCount: facts.checkpointCount,
            jobCount: facts.jobCount,
            id: facts.clientCount > 0 ? number(of: facts.definition.uuid) : -1)
    }

    /// A domain keeps its number as long as the server runs.
    private func number(of uuid: String) -> Int32 {
        numbers.withLock { numbers in
            if let number = numbers.byUUID[uuid] { return number }
            // Wraps long before the next machine of this process could be reached.
            // Beside a libvirtd they are none of its own.
            let first: Int32 = upstream == nil ? 1 : 1 << 30
            numbers.last = numbers.last == Int32.max ? first : max(numbers.last + 1, first)
            numbers.byUUID[uuid] = numbers.last
            return numbers.last
        }
    }
}

extension UUIDText {
    /// The sixteen bytes of a uuid in this type's form.
    static func bytes(_ text: String) -> [UInt8] {
        let digits = Array(text.utf8.filter { $0 != UInt8(ascii: "-") })
        return stride(from: 0, to: min(digits.count, 32) - 1, by: 2).map { index in
            UInt8(String(decoding: digits[index..<index + 2], as: UTF8.self), radix: 16) ?? 0
        }
    }

    /// The text of sixteen bytes.
    static func text(_ bytes: [UInt8]) -> String {
        let digits = bytes.map { byte in
            let text = String(byte, radix: 16)
            return text.utf8.count == 1 ? "0" + text : text
        }.joined()
        return normalized(digits) ?? digits
    }
}
