import LibvirtProtocol
import Testing

@testable import Control

@Suite("Upstream: how two answers become one")
struct UpstreamMergeTests {
    private func domain(_ number: UInt8, _ name: String = "d") -> WireDomain {
        WireDomain(name: name, uuid: [UInt8](repeating: number, count: 16), id: -1)
    }

    @Test("a domain is the same by its uuid, whatever its name")
    func unknown() {
        let left = UpstreamMerge.unknown(
            [domain(1, "a"), domain(2, "b")], to: [domain(1, "z"), domain(3, "b")])
        #expect(left == [domain(2, "b")])
    }

    @Test(
        "checkpoints of our domains are counted here, those of others are libvirtd's to say",
        arguments: [
            (true, false, [UInt8(1), 4]), (false, true, [2, 4]), (true, true, [1, 2, 4]),
        ])
    func checkpoints(some: Bool, none: Bool, expected: [UInt8]) {
        let listed = UpstreamMerge.byCheckpoints(
            [domain(1), domain(2), domain(3), domain(4)], theirs: [domain(2), domain(4)],
            ours: [domain(1).uuid: 2, domain(2).uuid: 0], wantsSome: some, wantsNone: none)
        #expect(listed.map { $0.uuid[0] } == expected)
    }

    @Test("libvirtd is asked about what it may know, we about what it does not")
    func split() {
        let (upstream, ours) = UpstreamMerge.split(
            [domain(1), domain(2), domain(3)], known: [domain(1)],
            own: [domain(1).uuid, domain(2).uuid])
        #expect(upstream.map { $0.uuid[0] } == [1, 3])
        #expect(ours.map { $0.uuid[0] } == [2])
    }

    @Test("sizes of our disks fill gaps by the disks' names, and change nothing that is there")
    func sizes() {
        let theirs = DomainRecord(
            domain: domain(1),
            parameters: [
                TypedParameter("block.count", .uint(2)),
                TypedParameter("block.0.name", .string("sda")),
                TypedParameter("block.1.name", .string("vda")),
                TypedParameter("block.1.capacity", .uhyper(5)),
                TypedParameter("block.x", .string("vda")),
            ])
        let ours = DomainRecord(
            domain: domain(1),
            parameters: [
                TypedParameter("block.0.name", .string("vda")),
                TypedParameter("block.0.capacity", .uhyper(9)),
                TypedParameter("block.0.physical", .uhyper(8)),
            ])
        let only = DomainRecord(domain: domain(2), parameters: [])
        let merged = UpstreamMerge.records(
            [theirs], filledFrom: [ours, only, only], known: [domain(1)])
        #expect(merged.count == 2)
        #expect(
            merged[0].parameters == theirs.parameters + [
                TypedParameter("block.1.physical", .uhyper(8))
            ])
        #expect(merged[1] == only)
    }
}
