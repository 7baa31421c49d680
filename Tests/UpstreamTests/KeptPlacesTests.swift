import Testing
import UnitSupport

@testable import Upstream

/// Where the kept changes of an upstream lie.
@Suite struct KeptPlacesTests {
    @Test(
        "a range is touched when one of the changes has bytes in it",
        arguments: 0..<40 as Range<UInt64>)
    func likeAList(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var places = KeptPlaces()
        var list: [Int32: Range<UInt64>] = [:]
        let reach = UInt64([8, 64, 4096][Int(seed % 3)])
        for _ in 0..<600 {
            let start = random.next() % reach
            let end = start + 1 + random.next() % (seed.isMultiple(of: 2) ? 4 : reach)
            let number = Int32(random.next() % 100)
            if list[number] != nil {
                places.remove(number)
                list[number] = nil
            } else {
                places.insert(number, position: start, end: end)
                list[number] = start..<end
            }
            let from = random.next() % (reach + 2)
            let to = from + 1 + random.next() % 5
            #expect(
                places.touches(position: from, end: to)
                    == list.values.contains { $0.overlaps(from..<to) })
        }
        for number in list.keys { places.remove(number) }
        #expect(places.isEmpty && !places.touches(position: 0, end: .max))
    }
}
