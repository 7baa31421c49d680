import Testing
import Tracking

@testable import NBDServer

@Suite("Frozen bitmaps: what an incremental backup has to read")
struct FrozenBitmapTests {
    @Test(
        "dirty bytes end where the disk ends",
        arguments: [
            ([], 0), ([0..<1], 65_536), ([2..<3], 1000), ([0..<3], 132_072), ([1..<3], 66_536),
        ] as [([Range<Int>], UInt64)])
    func dirtyBytes(blocks: [Range<Int>], bytes: UInt64) {
        var bitmap = DirtyBitmap(blockCount: 3)
        for run in blocks { bitmap.mark(run) }
        let frozen = FrozenBitmap(name: "backup-vda", checkpoint: "c1", granularityShift: 16)
        frozen.freeze(bitmap)
        #expect(frozen.dirtyBytes(ofSize: 2 * 65_536 + 1000) == bytes)
    }

    @Test("a disk of no bytes has none that are dirty")
    func empty() {
        let frozen = FrozenBitmap(name: "backup-vda", checkpoint: "c1", granularityShift: 16)
        frozen.freeze(DirtyBitmap(blockCount: 0))
        #expect(frozen.dirtyBytes(ofSize: 0) == 0)
    }
}
