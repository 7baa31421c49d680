import LibvirtProtocol

/// The figures of one domain.
struct DomainRecord: Sendable, Hashable {
    var domain: WireDomain
    var parameters: [TypedParameter]
}

/// How libvirtd's lists and figures and ours become one; domains are the same when their uuids are.
enum UpstreamMerge {
    /// Of a list of ours, the domains that libvirtd does not know.
    static func unknown(_ ours: [WireDomain], to known: [WireDomain]) -> [WireDomain] {
        let uuids = Set(known.map(\.uuid))
        return ours.filter { !uuids.contains($0.uuid) }
    }

    /// A list cut down to domains with checkpoints, or without: of ours we count them, of others
    /// libvirtd has said which it means.
    static func byCheckpoints(
        _ all: [WireDomain], theirs: [WireDomain], ours: [[UInt8]: Int], wantsSome: Bool,
        wantsNone: Bool
    ) -> [WireDomain] {
        let meant = Set(theirs.map(\.uuid))
        return all.filter { domain in
            guard let count = ours[domain.uuid] else { return meant.contains(domain.uuid) }
            return count > 0 ? wantsSome : wantsNone
        }
    }

    /// Which of the domains asked for libvirtd is asked about, and which only we know.
    static func split(
        _ asked: [WireDomain], known: [WireDomain], own: [[UInt8]]
    ) -> (upstream: [WireDomain], onlyOurs: [WireDomain]) {
        let (known, own) = (Set(known.map(\.uuid)), Set(own))
        let isOnlyOurs = { (domain: WireDomain) in
            own.contains(domain.uuid) && !known.contains(domain.uuid)
        }
        return (asked.filter { !isOnlyOurs($0) }, asked.filter(isOnlyOurs))
    }

    /// Libvirtd's figures with what it leaves out of our disks, then those of domains that it does
    /// not know.
    static func records(
        _ theirs: [DomainRecord], filledFrom ours: [DomainRecord], known: [WireDomain]
    ) -> [DomainRecord] {
        let known = Set(known.map(\.uuid))
        let own = Dictionary(ours.map { ($0.domain.uuid, $0) }) { first, _ in first }
        let filled = theirs.map { record in
            own[record.domain.uuid].map { filling(record, from: $0) } ?? record
        }
        var seen: Set<[UInt8]> = []
        return filled
            + ours.filter { record in
                !known.contains(record.domain.uuid) && seen.insert(record.domain.uuid).inserted
            }
    }

    private static let sizes = ["allocation", "capacity", "physical"]

    /// Adds the sizes of disks where there are none, by the disks' names.
    private static func filling(_ record: DomainRecord, from ours: DomainRecord) -> DomainRecord {
        let own = Dictionary(
            disks(ours).map { ($0.name, $0.number) }
        ) { first, _ in first }
        let values = Dictionary(
            ours.parameters.map { ($0.field, $0.value) }
        ) { first, _ in first }
        var record = record
        var present = Set(record.parameters.map(\.field))
        for (number, name) in disks(record) {
            guard let ownNumber = own[name] else { continue }
            for size in sizes {
                guard let value = values["block.\(ownNumber).\(size)"],
                    present.insert("block.\(number).\(size)").inserted
                else { continue }
                record.parameters.append(TypedParameter("block.\(number).\(size)", value))
            }
        }
        return record
    }

    // The disks' places in the figures, with their targets.
    private static func disks(_ record: DomainRecord) -> [(number: Substring, name: String)] {
        record.parameters.compactMap { parameter in
            let parts = parameter.field.split(separator: ".", omittingEmptySubsequences: false)
            guard parts.count == 3, parts[0] == "block", parts[2] == "name",
                case .string(let name) = parameter.value
            else { return nil }
            return (parts[1], name)
        }
    }
}
