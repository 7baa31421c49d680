import Testing

@testable import NBDServer

@Suite("Large folios under small writes")
struct FolioSplitsTests {
    private let dear = FolioSplits.dearNanoseconds + 1
    private let cheap: UInt64 = 5000
    private let region = FolioSplits.regionBytes

    private let real = FolioSplits.realNanoseconds + 1

    /// What a disk has of it, for expectations to ask.
    private final class Disk {
        private var splits: FolioSplits

        init(sizeBytes: UInt64 = 1 << 30) { splits = FolioSplits(sizeBytes: sizeBytes) }

        func wantsSplit(at offset: UInt64, now: UInt64) -> Bool {
            splits.wantsSplit(at: offset, now: now)
        }
        func wrote(at offset: UInt64, took nanoseconds: UInt64, now: UInt64) {
            splits.wrote(at: offset, took: nanoseconds, now: now)
        }
        @discardableResult
        func split(took nanoseconds: UInt64, now: UInt64) -> Bool {
            splits.split(took: nanoseconds, now: now)
        }
    }

    /// A disk whose writes are dear, but for its last region, which was written to.
    private func dearDisk(sizeBytes: UInt64 = 1 << 30) -> Disk {
        let disk = Disk(sizeBytes: sizeBytes)
        for _ in 0..<FolioSplits.dearnessMax { disk.wrote(at: sizeBytes - 1, took: dear, now: 0) }
        return disk
    }

    @Test("while writes are cheap nothing is split, also where one in eight is not")
    func cheapWrites() {
        let disk = Disk()
        for number in 0..<UInt64(1000) {
            let offset = number * region
            #expect(!disk.wantsSplit(at: offset, now: number))
            disk.wrote(at: offset, took: number % 8 == 0 ? dear : cheap, now: number)
        }
    }

    @Test(
        "where writes are dear each region is split once, before its first write",
        arguments: [1 << 30, 100 << 30, 2 << 40] as [UInt64])
    func dearWrites(sizeBytes: UInt64) {
        let disk = dearDisk(sizeBytes: sizeBytes)
        let count = min(sizeBytes / region - 1, 10_000)
        for round in 0..<2 {
            for number in 0..<count {
                let offset = sizeBytes / region / count * number * region + number % 128 * 4096
                #expect(disk.wantsSplit(at: offset, now: number) == (round == 0))
                if round == 0 { #expect(disk.split(took: real, now: number)) }
                disk.wrote(at: offset, took: cheap, now: number)
            }
        }
    }

    @Test("where there is nothing to split it ends soon, and begins again with dear writes")
    func nothingToSplit() {
        let disk = dearDisk(sizeBytes: 100 << 30)
        var tries = 0
        for number in 0..<UInt64(10_000) where disk.wantsSplit(at: number * region, now: number) {
            tries += 1
            #expect(!disk.split(took: cheap, now: number))
            disk.wrote(at: number * region, took: cheap, now: number)
        }
        #expect(tries <= FolioSplits.dearnessMax, "\(tries)")
        let other = 50_000 * region
        for _ in 0..<2 { disk.wrote(at: other, took: dear, now: 0) }
        #expect(disk.wantsSplit(at: other, now: 0))
    }

    @Test("regions that stay dear are all tried again, later each time")
    func again() {
        let disk = dearDisk()
        var now: UInt64 = 0
        var pauses: [UInt64] = []
        var last: UInt64 = 0
        while pauses.count < 12 {
            if disk.wantsSplit(at: 0, now: now) {
                disk.split(took: real, now: now)
                pauses.append(now - last)
                last = now
            }
            disk.wrote(at: 0, took: dear, now: now)
            now += FolioSplits.pauseNanoseconds / 1000
        }
        #expect(pauses[2] > FolioSplits.pauseNanoseconds && pauses[4] > pauses[2])
        #expect(pauses.dropFirst().allSatisfy { $0 <= 2 * FolioSplits.pauseNanosecondsMax })
        for _ in 0..<10_000 {
            disk.wrote(at: 0, took: cheap, now: now)
            #expect(!disk.wantsSplit(at: 0, now: now))
        }
    }

    @Test("a split that was made to wait is the last for a hundred times as long")
    func slow() {
        let disk = dearDisk()
        let took = FolioSplits.slowNanoseconds + 1
        disk.split(took: took - 1, now: 0)
        #expect(disk.wantsSplit(at: region, now: 0))
        disk.split(took: took, now: 0)
        #expect(!disk.wantsSplit(at: 2 * region, now: took * FolioSplits.slowFactor - 1))
        #expect(disk.wantsSplit(at: 2 * region, now: took * FolioSplits.slowFactor))
        disk.split(took: .max, now: 0)
        #expect(!disk.wantsSplit(at: 3 * region, now: FolioSplits.slowRestNanosecondsMax - 1))
        #expect(disk.wantsSplit(at: 3 * region, now: FolioSplits.slowRestNanosecondsMax))
    }

    @Test("the smallest and the largest disk, and places behind their ends")
    func ends() {
        for sizeBytes in [0, 1, 4096, UInt64(1) << 62, .max] {
            let disk = Disk(sizeBytes: sizeBytes)
            for _ in 0..<64 { disk.wrote(at: 0, took: dear, now: 0) }
            #expect(disk.wantsSplit(at: (1 << 62) - 4096, now: .max))
            disk.split(took: .max, now: 0)
            disk.wrote(at: .max, took: .max, now: UInt64.max / 2)
        }
    }
}
