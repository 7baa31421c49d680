import Testing

@testable import NBDServer

@Suite("Which rings serve whom")
struct RingLayoutTests {
    @Test("machines and backup clients never share a ring", arguments: [1, 2, 64])
    func apart(rings: Int) {
        let layout = RingLayout(rings: rings, servesJobs: true)
        #expect(layout.count == 2 * rings)
        #expect(layout.rings(for: .guests) == 0..<rings)
        #expect(layout.rings(for: .backups) == rings..<2 * rings)
        for duty in [RingDuty.guests, .backups] {
            #expect(layout.rings(for: duty).allSatisfy { layout.duty(of: $0) == duty })
        }
    }

    @Test("without jobs there are no more rings than were asked for")
    func withoutJobs() {
        let layout = RingLayout(rings: 3, servesJobs: false)
        #expect(layout.count == 3)
        #expect(layout.rings(for: .backups) == 0..<3)
        #expect((0..<3).allSatisfy { layout.duty(of: $0) == .guests })
    }

    @Test("every thread has a name of its own, as long as the kernel takes it")
    func names() {
        let layout = RingLayout(rings: 64, servesJobs: true)
        let names = (0..<layout.count).map { layout.threadName(of: $0) }
        #expect(Set(names).count == layout.count)
        #expect(names.allSatisfy { $0.utf8.count <= 15 })
    }
}
