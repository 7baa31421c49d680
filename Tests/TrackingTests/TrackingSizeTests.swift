import Foundation
import SystemLayer
import Testing
import UnitSupport

@testable import Tracking
@testable import TrackingFiles

/// Numbers that a size, a setting or a damaged file can bring: refused or bounded, never a trap.
@Suite struct TrackingSizeTests {
    private func places(_ path: String) -> TrackingPlaces {
        TrackingPlaces(files: DiskDirectory(path), memory: nil, isInMemory: false, mark: nil)
    }

    private func withDirectory(_ body: (String) throws -> Void) throws {
        let path = NSTemporaryDirectory() + "nbdpull-sizes-" + UUID().uuidString
        defer { try? FileManager.default.removeItem(atPath: path) }
        try StateFiles.makeDirectory(path)
        try body(path)
    }

    private func source(_ sizeBytes: UInt64) -> SourceIdentity {
        SourceIdentity(path: "/d", sizeBytes: sizeBytes, inode: 1, changedNanoseconds: 1)
    }

    @Test("regions of the log grow with the disk, so that their number is bounded")
    func regions() {
        let tebibyte: UInt64 = 1 << 40
        for (size, shift) in [
            (1, 27), (16 * tebibyte, 27), (128 * tebibyte, 27), (128 * tebibyte + 1, 28),
            (600 * tebibyte, 30), (1024 * tebibyte, 30), (1 << 62, 42),
        ] as [(UInt64, UInt64)] {
            #expect(IntentLogFile.regionShift(diskBytes: size) == shift, "\(size)")
            #expect((size - 1) >> shift < UInt64(IntentLogFile.regionCountMax))
        }
    }

    @Test("a disk with too many blocks is refused with the granularity that would do")
    func tooManyBlocks() throws {
        try withDirectory { path in
            let cases: [(UInt64, UInt32, UInt64)] = [
                (600 << 40, 4096, 32_768), ((128 << 40) + 1, 4096, 8192),
                ((2 << 50) + 1, 65_536, 131_072), (1 << 62, 1 << 21, 1 << 27),
            ]
            for (size, granularity, needed) in cases {
                #expect(
                    throws: TrackingFault.tooManyBlocks(
                        sizeBytes: size, granularityBytes: granularity, neededBytes: needed)
                ) {
                    try TrackingStore.open(
                        places(path), source: source(size), granularityBytes: granularity)
                }
            }
            #expect(StateFiles.names(in: path).isEmpty)
        }
    }

    @Test("a disk of 64 TiB is tracked in blocks of 4 KiB")
    func largeDisk() throws {
        try withDirectory { path in
            let size: UInt64 = 64 << 40
            var store = try TrackingStore.open(
                places(path), source: source(size), granularityBytes: 4096)
            try store.seal(checkpoint: "c1", next: try store.prepareNext())
            #expect(store.recording.mark(offset: size - 1, length: 1))
            try store.close(source: source(size))
            let again = try TrackingStore.open(
                places(path), source: source(size), granularityBytes: 4096)
            let answer = try again.union(since: "c1", recording: again.recording.snapshot())
            #expect(answer.dirtyCount == 1 && answer.isDirty(answer.blockCount - 1))
        }
    }

    @Test("a log whose numbers no disk has is no log")
    func logNumbers() throws {
        for (regions, bytes) in [(2, 1 << 63), (1, (1 << 62) + 1), (1 << 22, 1 << 61)]
            as [(Int, UInt64)]
        {
            let shape = IntentLogShape(regionCount: regions, regionBytes: bytes)
            #expect(throws: IntentLogFault.noWholeSlot) {
                try IntentLogCodec.decode(IntentLogCodec.encodeEmpty(shape: shape))
            }
        }
        try withDirectory { path in
            // Marks past the last region.
            let shape = IntentLogShape(regionCount: 1, regionBytes: 1 << 62)
            let slots = [0, 1].flatMap {
                IntentLogCodec.encodeSlot([.max], shape: shape, generation: $0)
            }
            try Data(slots).write(to: URL(fileURLWithPath: path + "/intent"))
            #expect(IntentLogFile.markedRanges(in: DiskDirectory(path)) == nil)
        }
    }

    @Test("a record whose numbers no disk has is damaged")
    func recordNumbers() {
        for (size, granularity) in [(1 << 63, 4096), (.max, 4096), (1, 0), (1, 3)]
            as [(UInt64, UInt32)]
        {
            let record = TrackingRecord(
                source: source(size), granularityBytes: granularity, bootID: "", isClean: true,
                chain: LayerChain())
            #expect(TrackingRecord.decode(record.encode()) == nil, "\(size) \(granularity)")
        }
    }

    @Test("a record of the first form is still read")
    func oldRecord() {
        let body = """
            nbdpull-tracking 1
            path /d
            size 65536
            inode 1
            changed 2
            granularity 65536
            boot b
            clean 1
            next 2
            layer 1 c1

            """
        let bytes = Array(body.utf8)
        let record = TrackingRecord.decode(bytes + Array("crc \(Zlib.crc32(bytes.span))\n".utf8))
        #expect(record?.chain.checkpoints == ["c1"])
        #expect(record?.session == "" && record?.mark == "" && record?.isClean == true)
    }

    @Test("files with the largest serials are not ours")
    func serials() throws {
        try withDirectory { path in
            for name in ["layer-18446744073709551615.bits", "layer-9223372036854775807.z"] {
                try Data().write(to: URL(fileURLWithPath: path + "/" + name))
            }
            var store = try TrackingStore.open(
                places(path), source: source(1 << 20), granularityBytes: 4096)
            try store.seal(checkpoint: "c1", next: try store.prepareNext())
            #expect(store.record.chain.checkpoints == ["c1"])
        }
    }

    @Test("a checkpoint for which the record has no room is refused, and the others stay")
    func recordFull() throws {
        try withDirectory { path in
            var store = try TrackingStore.open(
                places(path), source: source(1 << 20), granularityBytes: 4096)
            let name = String(repeating: "n", count: 3 << 20)
            for number in 1...2 {
                try store.seal(checkpoint: "\(number)" + name, next: try store.prepareNext())
            }
            let next = try store.prepareNext()
            #expect(throws: TrackingFault.recordFull(limitBytes: TrackingRecord.bytesMax)) {
                try store.seal(checkpoint: "3" + name, next: next)
            }
            store.abandon(next)
            let again = try TrackingStore.open(
                places(path), source: source(1 << 20), granularityBytes: 4096)
            #expect(again.record.chain.checkpoints.count == 2)
        }
    }
}
