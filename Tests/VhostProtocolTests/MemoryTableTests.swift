import Testing
import VhostClient
import VhostProtocol

@Suite("Tables of memory")
struct MemoryTableTests {
    private static let page: UInt64 = 4096

    /// Regions of one to three pages in the first four and the last four pages of all addresses.
    private static let regions: [ClientRegion] = (0..<8).flatMap { place in
        (1...3).map { pages in
            ClientRegion(
                guest: (UInt64(place) &- 4) &* page, size: UInt64(pages) * page,
                user: 1 << 40 + UInt64(place) * page)
        }
    }

    /// Whether the region ends, by plain counting of pages.
    private static func ends(_ region: ClientRegion) -> Bool {
        let pages = (region.guest / page)..<(region.guest / page + region.size / page)
        return pages.upperBound < (1 << 52)
    }

    private static func overlap(_ one: ClientRegion, _ two: ClientRegion) -> Bool {
        let first = Set((0..<one.size / page).map { one.guest / page + $0 })
        return (0..<two.size / page).contains { first.contains(two.guest / page + $0) }
    }

    @Test("of every two regions both are taken exactly when they end and share no page")
    func pairs() {
        var taken = 0
        for one in Self.regions {
            for two in Self.regions {
                var rig = SessionRig.agreed()
                let isGood = Self.ends(one) && Self.ends(two) && !Self.overlap(one, two)
                let end = rig.send(.setMemory([one, two])).end
                #expect((end == .proceed) == isGood, "\(one) \(two)")
                guard isGood else { continue }
                taken += 1
                #expect(
                    rig.session.memory.entries.map(\.region.guestAddress)
                        == [one.guest, two.guest].sorted())
                // One by one they are taken likewise, and can be removed again.
                _ = rig.send(.setMemory([two]))
                #expect(rig.send(.addRegion(one)).end == .proceed)
                #expect(rig.send(.removeRegion(two)).end == .proceed)
                #expect(rig.session.memory.entries.map(\.region.guestAddress) == [one.guest])
            }
        }
        #expect(taken > 100)
    }

    @Test("a ring is found by the front-end's address, wherever its region is in the guest")
    func translation() {
        for (guest, user) in [(UInt64(0), UInt64(1 << 40)), (1 << 33, 4096), (1 << 62, 1 << 63)] {
            var rig = SessionRig.agreed()
            _ = rig.send(
                .setMemory([
                    ClientRegion(guest: 1 << 61, size: 4096, user: user + 1 << 20),
                    ClientRegion(guest: guest, size: 1 << 20, user: user, offset: 1 << 30),
                ]))
            _ = rig.send(.setSize(0, 4))
            _ = rig.send(
                .setAddresses(
                    0, descriptors: user + 64, used: user + 1 << 19, available: user + 256))
            guard case .changeQueue(0, .start(let setup)) = rig.send(.setKick(0)).action else {
                Issue.record("the queue does not start")
                continue
            }
            #expect(
                setup.rings
                    == RingAddresses(
                        descriptors: guest + 64, available: guest + 256, used: guest + 1 << 19))
        }
    }
}
