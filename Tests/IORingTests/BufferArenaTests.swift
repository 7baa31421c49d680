import Foundation
import IORing
import Testing
import UnitSupport

@Suite("Buffer arena")
struct BufferArenaTests {
    private static let page = BufferArena.pageBytes

    /// The lowest free run in a plain array of pages.
    private func lowest(_ pages: Int, in used: [Bool]) -> Int? {
        guard pages <= used.count else { return nil }
        return (0...(used.count - pages)).first { start in
            !used[start..<(start + pages)].contains(true)
        }
    }

    @Test("by seed: lowest address first, no overlap, everything comes back", arguments: Seeds.all)
    func allocation(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        var arena = try BufferArena(capacityBytes: 256 * Self.page)
        var used = [Bool](repeating: false, count: arena.capacityBytes / Self.page)
        var runs: [(start: Int, pages: Int)] = []
        for step in 0..<3000 {
            // The arena fills and empties in turn, so that both ends are met.
            if random.below(10) < (step / 300 % 2 == 0 ? 7 : 3) || runs.isEmpty {
                let pages =
                    random.below(6) == 0 ? 1 + random.below(150) : 1 + random.below(9)
                let expected = lowest(pages, in: used)
                let offset = arena.allocate(pages: pages)
                guard offset == expected.map({ $0 * Self.page }) else {
                    Issue.record("seed=\(seed) step=\(step): \(pages) pages at \(offset ?? -1)")
                    return
                }
                guard let expected else { continue }
                runs.append((expected, pages))
                for page in expected..<(expected + pages) { used[page] = true }
            } else {
                let run = runs.remove(at: random.below(runs.count))
                arena.free(run.start * Self.page, pages: run.pages)
                for page in run.start..<(run.start + run.pages) { used[page] = false }
            }
            let usedPages = arena.usedPages
            guard usedPages == used.count(where: { $0 }) else {
                Issue.record("seed=\(seed) step=\(step): \(usedPages) pages in use")
                return
            }
        }
        for run in runs { arena.free(run.start * Self.page, pages: run.pages) }
        let left = arena.usedPages
        let whole = arena.allocate(pages: used.count)
        #expect(left == 0 && whole == 0)
    }

    @Test("capacity is rounded up to 64 pages, and all of it can be had")
    func capacity() throws {
        var arena = try BufferArena(capacityBytes: 1)
        let capacity = arena.capacityBytes
        let all = arena.allocate(pages: 64)
        let more = arena.allocate(pages: 1)
        #expect(capacity == 64 * Self.page)
        #expect(all == 0)
        #expect(more == nil)
    }

    @Test("P6: memory of pages that nobody takes any more goes back, and that of others stays")
    func trim() throws {
        var arena = try BufferArena(capacityBytes: 1024 * Self.page)
        let allocated = arena.allocate(pages: 1000)
        let all = try #require(allocated)
        arena.zero(0, count: 1000 * Self.page)
        for page in 0..<1000 { set(&arena, page * Self.page, 7) }
        arena.free(all + 100 * Self.page, pages: 900)
        // They were in use not long ago.
        arena.trim()
        var touched = arena.touchedPages
        #expect(touched >= 1000)
        arena.trim()
        touched = arena.touchedPages
        #expect((100...163).contains(touched))
        let kept = arena.contents(99 * Self.page, count: 1)
        let gone = arena.contents(200 * Self.page, count: 1)
        #expect(kept == [7] && gone == [0])
        let again = arena.allocate(pages: 500)
        #expect(again == 100 * Self.page)
        set(&arena, 300 * Self.page, 9)
        arena.trim()
        arena.trim()
        let inUse = arena.contents(300 * Self.page, count: 1)
        #expect(inUse == [9])
    }

    @Test("P6: memory of a burst goes back in steps of 16 MiB, and none that was taken meanwhile")
    func trimInSteps() throws {
        let step = BufferArena.trimPages
        var arena = try BufferArena(capacityBytes: 4 * step * Self.page)
        let allocated = arena.allocate(pages: 4 * step)
        let all = try #require(allocated)
        set(&arena, step * Self.page, 7)
        arena.free(all, pages: 4 * step)
        arena.trim()
        arena.goOnTrimming()
        var touched = arena.touchedPages
        #expect(touched == 4 * step, "they were in use not long ago")
        arena.trim()
        touched = arena.touchedPages
        #expect(touched == 3 * step)
        let taken = arena.allocate(pages: step + 1)
        #expect(taken == 0)
        for _ in 0..<5 { arena.goOnTrimming() }
        touched = arena.touchedPages
        #expect(touched == step + 1)
        let kept = arena.contents(step * Self.page, count: 1)
        #expect(kept == [7], "it was never given back")
        arena.free(0, pages: step + 1)
        arena.trim()
        arena.trim()
        arena.goOnTrimming()
        touched = arena.touchedPages
        let gone = arena.contents(step * Self.page, count: 1)
        #expect(touched == 0 && gone == [0])
    }

    @Test("isZero sees a single byte at every place, and none outside")
    func isZero() throws {
        var arena = try BufferArena(capacityBytes: 64 * Self.page)
        for offset in [0, 1, 7, 8, 63, 64, 65] {
            for count in 0...200 {
                arena.zero(0, count: 400)
                set(&arena, offset + count, 1)
                if offset > 0 { set(&arena, offset - 1, 1) }
                guard arena.isZero(offset, count: count) else {
                    Issue.record("\(count) zeros at \(offset) are not seen as zeros")
                    return
                }
                for position in 0..<count {
                    set(&arena, offset + position, 0x80)
                    if arena.isZero(offset, count: count) {
                        Issue.record("byte \(position) of \(count) at \(offset) is not seen")
                        return
                    }
                    set(&arena, offset + position, 0)
                }
            }
        }
    }

    private func set(_ arena: inout BufferArena, _ offset: Int, _ value: UInt8) {
        var bytes = arena.mutableBytes(offset, count: 1)
        bytes.storeBytes(of: value, as: UInt8.self)
    }

    @Test("copy within the arena allows overlap")
    func copy() throws {
        var arena = try BufferArena(capacityBytes: 64 * Self.page)
        for index in 0..<100 { set(&arena, index, UInt8(index)) }
        arena.copy(from: 0, to: 10, count: 100)
        let bytes = arena.bytes(10, count: 100)
        var isRight = true
        for index in 0..<100 where bytes[index] != UInt8(index) { isRight = false }
        #expect(isRight)
    }
}
