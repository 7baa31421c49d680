import Testing
import UnitSupport

@testable import Tracking

@Suite("Sealed layers as bytes")
struct LayerTests {
    private func identity(blocks: Int, granularity: UInt32 = 65_536) -> LayerIdentity {
        LayerIdentity(
            diskBytes: UInt64(blocks) * UInt64(granularity), granularityBytes: granularity,
            serial: 7)
    }

    private func bitmap(blocks: Int, seed: UInt64) -> DirtyBitmap {
        var random = SplitMix64(seed: seed)
        var bitmap = DirtyBitmap(blockCount: blocks)
        for _ in 0..<(blocks / 8 + 1) where blocks > 0 {
            let start = random.below(blocks)
            bitmap.mark(start..<min(blocks, start + 1 + random.below(9)))
        }
        return bitmap
    }

    private func fault(_ bytes: [UInt8]) -> LayerFault? {
        do throws(LayerFault) {
            _ = try LayerCodec.decode(bytes)
            return nil
        } catch {
            return error
        }
    }

    @Test(
        "what is encoded is decoded",
        arguments: [0, 1, 63, 64, 65, 127, 128, 1000, 65_537], TrackingSeeds.all)
    func roundTrip(blocks: Int, seed: UInt64) throws {
        let bitmap = bitmap(blocks: blocks, seed: seed)
        let identity = identity(blocks: blocks)
        let bytes = LayerCodec.encode(bitmap, identity: identity)
        let (decoded, found) = try LayerCodec.decode(bytes)
        #expect(decoded == bitmap && found == identity, "seed=\(seed)")
    }

    @Test("empty and full layers of 16 TiB are small and come back")
    func extremes() throws {
        let blocks = 1 << 22
        let identity = identity(blocks: blocks, granularity: 4 << 20)
        var bitmap = DirtyBitmap(blockCount: blocks)
        for _ in 0..<2 {
            let bytes = LayerCodec.encode(bitmap, identity: identity)
            #expect(bytes.count < 8192)
            #expect(try LayerCodec.decode(bytes).0 == bitmap)
            bitmap.mark(0..<blocks)
        }
    }

    @Test("every truncation, and every byte too many, is a fault", arguments: [0, 3, 200])
    func truncation(blocks: Int) {
        let bytes = LayerCodec.encode(
            bitmap(blocks: blocks, seed: 1), identity: identity(blocks: blocks))
        for count in 0..<bytes.count {
            #expect(fault(Array(bytes[..<count])) != nil, "\(count) of \(bytes.count) bytes")
        }
        #expect(fault(bytes + [0]) != nil)
    }

    @Test("every flipped bit is a fault", arguments: [0, 3, 200])
    func flips(blocks: Int) {
        let bytes = LayerCodec.encode(
            bitmap(blocks: blocks, seed: 2), identity: identity(blocks: blocks))
        for index in bytes.indices {
            for bit in 0..<8 {
                var damaged = bytes
                damaged[index] ^= 1 << UInt8(bit)
                #expect(fault(damaged) != nil, "bit \(bit) of byte \(index)")
            }
        }
    }

    /// A header with checksums that match, whatever its numbers say.
    private func layer(
        granularity: UInt32, diskBytes: UInt64, blocks: UInt64, dirty: UInt64 = 0,
        pages: UInt64 = 1,
        body: [UInt8]
    ) -> [UInt8] {
        var bytes = Array("nbdlayer".utf8)
        bytes.append(littleEndian: LayerCodec.version)
        bytes.append(littleEndian: granularity)
        bytes.append(littleEndian: diskBytes)
        bytes.append(littleEndian: UInt64(0))
        bytes.append(littleEndian: blocks)
        bytes.append(littleEndian: dirty)
        bytes.append(littleEndian: pages)
        bytes.append(littleEndian: UInt64(body.count))
        bytes.append(littleEndian: Zlib.crc32(body.span))
        bytes.append(littleEndian: Zlib.crc32(bytes.span))
        return bytes + body
    }

    /// A body: the directory, then one page that begins with a word.
    private func body(directory: UInt64 = 1, first: UInt64 = 0) -> [UInt8] {
        let rest = [UInt64](repeating: 0, count: DirtyBitmap.pageWords - 1)
        return Zlib.compress([directory, first] + rest)
    }

    @Test("numbers that do not belong together are refused, checksums or not")
    func implausible() {
        let max = LayerCodec.blockCountMax
        #expect(fault(layer(granularity: 512, diskBytes: 1024, blocks: 2, body: body())) == nil)
        let wrong: [(UInt32, UInt64, UInt64, UInt64)] = [
            (0, 1024, 2, 1), (513, 1024, 2, 1), (512, 1024, 3, 1), (512, 1025, 2, 1),
            (512, .max, 2, 1), (1, max + 1, max + 1, 1), (1, .max, .max, 1), (512, 1024, .max, 1),
            (512, 1024, 2, 2), (512, 1024, 2, .max),
        ]
        for (granularity, diskBytes, blocks, pages) in wrong {
            let bytes = layer(
                granularity: granularity, diskBytes: diskBytes, blocks: blocks, pages: pages,
                body: body())
            let expected = LayerFault.implausible(
                diskBytes: diskBytes, granularityBytes: granularity, blockCount: blocks)
            #expect(fault(bytes) == expected)
        }
    }

    @Test("a body that cannot hold the bits, holds others or counts them wrongly is refused")
    func wrongBody() {
        let max = LayerCodec.blockCountMax
        let whole = body()
        let two = UInt64(DirtyBitmap.pageWords * 64 + 1)
        let cases: [[UInt8]] = [
            layer(granularity: 1, diskBytes: max, blocks: max, pages: max >> 15, body: whole),
            layer(granularity: 1, diskBytes: 0, blocks: 0, pages: 0, body: whole),
            layer(granularity: 1, diskBytes: 10, blocks: 10, pages: 0, body: whole),
            layer(granularity: 1, diskBytes: two, blocks: two, pages: 2, body: whole),
            layer(granularity: 1, diskBytes: two, blocks: two, body: body(directory: 3)),
            layer(granularity: 1, diskBytes: two, blocks: two, body: body(directory: 4)),
            layer(granularity: 1, diskBytes: 10, blocks: 10, body: body(directory: 2)),
            layer(granularity: 1, diskBytes: 10, blocks: 10, body: body(directory: 0)),
            layer(granularity: 1, diskBytes: 10, blocks: 10, body: Zlib.compress([1, 0])),
            layer(granularity: 1, diskBytes: 10, blocks: 10, body: whole + [0]),
            layer(granularity: 1, diskBytes: 10, blocks: 10, body: []),
            layer(granularity: 1, diskBytes: 10, blocks: 10, dirty: 1, body: whole),
            layer(granularity: 1, diskBytes: 3, blocks: 3, dirty: 1, body: body(first: 8)),
            layer(granularity: 1, diskBytes: 3, blocks: 3, dirty: 0, body: body(first: 8)),
            layer(granularity: 1, diskBytes: 3, blocks: 3, dirty: 2, body: body(first: 4)),
        ]
        for (index, bytes) in cases.enumerated() {
            #expect(fault(bytes) == .bodyDamaged, "case \(index)")
        }
        #expect(fault([]) == .tooShort(bytes: 0))
    }

    @Test("pages make a bitmap; bits past the end are dropped")
    func pages() {
        let page = DirtyBitmap.pageWords * 64
        let full = [UInt64](repeating: .max, count: DirtyBitmap.pageWords)
        for blocks in [1, 63, 64, 65, 130, page - 1, page, page + 1, 2 * page + 65] {
            var filled = DirtyBitmap(blockCount: blocks)
            for number in 0..<DirtyBitmap.pageCount(blockCount: blocks) {
                filled.fill(page: number, with: full)
            }
            var expected = DirtyBitmap(blockCount: blocks)
            expected.mark(0..<blocks)
            #expect(filled == expected && filled.dirtyCount == blocks)
        }
    }

    @Test("clean pages are in no file and in no memory")
    func cleanPages() throws {
        let blocks = 1 << 28
        var bitmap = DirtyBitmap(blockCount: blocks)
        bitmap.mark((blocks - 1)..<blocks)
        bitmap.mark(70_000..<70_001)
        #expect(bitmap.dirtyPages == [2, 8191])
        let bytes = LayerCodec.encode(bitmap, identity: identity(blocks: blocks))
        #expect(bytes.count < 300)
        let decoded = try LayerCodec.decode(bytes).0
        #expect(decoded == bitmap && decoded.dirtyPages == [2, 8191])
    }

    @Test("a disk that grew has a dirty tail, from the block that held the old end")
    func growth() {
        for oldBytes in 1...40 as ClosedRange<UInt64> {
            for newBytes in oldBytes...(oldBytes + 300) {
                let old = LayerIdentity(diskBytes: oldBytes, granularityBytes: 4, serial: 0)
                let clean = DirtyBitmap(blockCount: Int(old.blockCount))
                let grown = old.grown(clean, toDiskBytes: newBytes)
                let firstNew = newBytes == oldBytes ? Int(old.blockCount) : Int(oldBytes / 4)
                var expected = DirtyBitmap(blockCount: Int((newBytes + 3) / 4))
                expected.mark(firstNew..<expected.blockCount)
                #expect(grown == expected, "\(oldBytes) to \(newBytes) bytes")
            }
        }
    }
}
