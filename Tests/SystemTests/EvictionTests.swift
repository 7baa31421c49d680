import Tables
import Testing

@Suite struct EvictionTests {
    @Test("whoever holds most places makes way, however long others have been quiet")
    func crowd() {
        var eviction = Eviction<Int, String>()
        eviction.add(0, of: "honest", quietSince: 1, mayGo: true)
        for place in 1...3 {
            eviction.add(place, of: "flood", quietSince: UInt64(10 - place), mayGo: true)
        }
        #expect(eviction.choice == 3)
    }

    @Test("among equals the one that has been quiet for the longest time makes way")
    func quietest() {
        var eviction = Eviction<Int, String>()
        for (place, quietSince) in [7, 3, 9].enumerated() {
            eviction.add(place, of: "\(place)", quietSince: UInt64(quietSince), mayGo: true)
        }
        #expect(eviction.choice == 1)
    }

    @Test("places that are too new count and do not make way, and nobody does so in their stead")
    func tooNew() {
        var eviction = Eviction<Int, String>()
        #expect(eviction.choice == nil)
        eviction.add(0, of: "new", quietSince: 1, mayGo: false)
        #expect(eviction.choice == nil)
        eviction.add(1, of: "new", quietSince: 5, mayGo: false)
        eviction.add(2, of: "other", quietSince: 2, mayGo: true)
        #expect(eviction.choice == nil)
        eviction.add(3, of: "new", quietSince: 5, mayGo: true)
        #expect(eviction.choice == 3)
    }
}
