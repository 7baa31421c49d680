import Testing

@testable import Upstream

@Suite("Runs of pages in a shared area")
struct PageRunsTests {
    @Test("never overlap, are the lowest that fit, and are all found again", arguments: 1...8)
    func model(seed: Int) {
        var state = UInt64(seed)
        func below(_ count: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int((state >> 33) % UInt64(count))
        }
        var runs = PageRuns(pages: 256)
        var inUse = [Bool](repeating: false, count: 256)
        var taken: [(page: Int, count: Int)] = []
        for _ in 0..<4000 {
            if below(2) == 0 {
                let count = [1, 1, 2, 5, 16, 63, 64, 65, 130, 256][below(10)]
                let lowest = (0...256 - count).first { start in
                    inUse[start..<start + count].allSatisfy { !$0 }
                }
                let found = runs.take(count)
                #expect(found == lowest, "\(count) pages")
                guard let found else { continue }
                for page in found..<found + count { inUse[page] = true }
                taken.append((found, count))
            } else if !taken.isEmpty {
                let run = taken.remove(at: below(taken.count))
                runs.give(run.page, run.count)
                for page in run.page..<run.page + run.count { inUse[page] = false }
            }
            #expect(runs.inUse == inUse.count { $0 })
            #expect(runs.high >= (inUse.lastIndex(of: true) ?? -1) + 1)
        }
        for run in taken { runs.give(run.page, run.count) }
        #expect(runs.take(256) == 0 && runs.take(1) == nil)
    }

    @Test("remember how far they reached")
    func high() {
        var runs = PageRuns(pages: 128)
        #expect(runs.take(100) == 0 && runs.high == 100)
        runs.give(0, 100)
        runs.lower(to: 10)
        #expect(runs.high == 10 && runs.take(4) == 0 && runs.high == 10)
    }

    @Test(
        "bytes are rounded up to pages", arguments: [(1, 1), (4096, 1), (4097, 2), (1 << 20, 256)])
    func rounding(bytes: Int, pages: Int) { #expect(PageRuns.pages(for: bytes) == pages) }
}
