import Testing

@testable import NBDServer

@Suite("Large folios under small writes")
struct FolioSplitsTests {
    private let dear = FolioSplits.dearNanoseconds + 1
    private let cheap: UInt64 = 5000
    private let region = FolioSplits.regionBytes

    /// What a disk has of it, for expectations to ask.
    private final class Disk {
        private var splits = FolioSplits()

        func wantsSplit(at offset: UInt64, now: UInt64) -> Bool {
            splits.wantsSplit(at: offset, now: now)
        }
        func wrote(at offset: UInt64, took nanoseconds: UInt64, now: UInt64) {
            splits.wrote(at: offset, took: nanoseconds, now: now)
        }
        func split(took nanoseconds: UInt64, now: UInt64) {
            splits.split(took: nanoseconds, now: now)
        }
    }

    /// A disk whose writes are dear.
    private func dearDisk() -> Disk {
        let splits = Disk()
        for _ in 0..<FolioSplits.dearnessMax { splits.wrote(at: 1 << 40, took: dear, now: 0) }
        return splits
    }

    @Test("while writes are cheap nothing is split, also where one in eight is not")
    func cheapWrites() {
        let splits = Disk()
        for number in 0..<UInt64(1000) {
            let offset = number * region
            #expect(!splits.wantsSplit(at: offset, now: number))
            splits.wrote(at: offset, took: number % 8 == 0 ? dear : cheap, now: number)
        }
    }

    @Test("where writes are dear each region is split once, before its first write")
    func dearWrites() {
        let splits = Disk()
        var count = 0
        for number in 0..<UInt64(4000) {
            let offset = number % 400 * region + number % 128 * 4096
            let isSplit = splits.wantsSplit(at: offset, now: number)
            count += isSplit ? 1 : 0
            // Those before it was known are not split by writing to them once more.
            splits.wrote(at: offset, took: isSplit || number >= 400 ? cheap : dear, now: number)
        }
        #expect((399...402).contains(count), "\(count)")
    }

    @Test("a region that stays dear is tried again, later each time, and a cheap write ends that")
    func again() {
        let splits = dearDisk()
        var now: UInt64 = 0
        var pause = FolioSplits.pauseNanoseconds
        #expect(splits.wantsSplit(at: 0, now: now))
        for _ in 0..<20 {
            splits.wrote(at: 4096, took: dear, now: now)
            #expect(!splits.wantsSplit(at: 0, now: now + pause - 1))
            now += pause
            #expect(splits.wantsSplit(at: 0, now: now))
            pause = min(pause * 2, FolioSplits.pauseNanosecondsMax)
        }
        splits.wrote(at: 4096, took: cheap, now: now)
        let later = now + 2 * FolioSplits.pauseNanosecondsMax
        #expect(!splits.wantsSplit(at: 0, now: later))
        splits.wrote(at: 4096, took: dear, now: later)
        #expect(splits.wantsSplit(at: 0, now: later + FolioSplits.pauseNanoseconds))
    }

    @Test("where splitting does not help, or waits, nothing is split for a while")
    func rests() {
        let vain = dearDisk()
        var tries = 0
        for number in 0..<UInt64(10_000) {
            if vain.wantsSplit(at: number * region, now: number) { tries += 1 }
            vain.wrote(at: number * region, took: dear, now: number)
        }
        #expect((FolioSplits.failuresMax...2 * FolioSplits.failuresMax).contains(tries), "\(tries)")
        let later = 10_000 + FolioSplits.restNanoseconds
        for _ in 0..<8 { vain.wrote(at: 1 << 50, took: dear, now: later) }
        #expect(vain.wantsSplit(at: 0, now: later))

        let slow = dearDisk()
        #expect(slow.wantsSplit(at: 0, now: 0))
        slow.split(took: FolioSplits.slowNanoseconds + 1, now: 0)
        for _ in 0..<8 { slow.wrote(at: 1 << 50, took: dear, now: 0) }
        #expect(!slow.wantsSplit(at: region, now: FolioSplits.restNanoseconds - 1))
        #expect(slow.wantsSplit(at: region, now: FolioSplits.restNanoseconds))
    }

    @Test("places at the far end of the largest disk")
    func farEnd() {
        let splits = dearDisk()
        let last = (UInt64(1) << 62) - 4096
        #expect(splits.wantsSplit(at: last, now: .max))
        splits.wrote(at: .max, took: .max, now: .max)
    }
}
