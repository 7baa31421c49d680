/// What a layer belongs to: the disk's size, what one bit covers, and the layer's number.
package struct LayerIdentity: Sendable, Hashable {
    /// Bytes of the disk.
    package let diskBytes: UInt64
    /// Bytes that one bit covers: a power of two.
    package let granularityBytes: UInt32
    /// The layer's number in its chain.
    package let serial: UInt64

    package init(diskBytes: UInt64, granularityBytes: UInt32, serial: UInt64) {
        precondition(granularityBytes.nonzeroBitCount == 1, "granularity is no power of two")
        self.diskBytes = diskBytes
        self.granularityBytes = granularityBytes
        self.serial = serial
    }

    /// Blocks of the disk; the last may be cut short by the disk's end.
    package var blockCount: UInt64 {
        let whole = diskBytes / UInt64(granularityBytes)
        return whole + (diskBytes % UInt64(granularityBytes) == 0 ? 0 : 1)
    }

    /// A layer's bitmap for a disk that grew: every block that holds a new byte is dirty.
    ///
    /// `bitmap` is of this identity; `newDiskBytes` is not smaller than `diskBytes`.
    package func grown(_ bitmap: DirtyBitmap, toDiskBytes newDiskBytes: UInt64) -> DirtyBitmap {
        precondition(UInt64(bitmap.blockCount) == blockCount)
        precondition(newDiskBytes >= diskBytes, "a disk that shrank has no layers")
        let new = LayerIdentity(
            diskBytes: newDiskBytes, granularityBytes: granularityBytes, serial: serial)
        var grown = bitmap.grown(to: Int(new.blockCount))
        if newDiskBytes > diskBytes, diskBytes % UInt64(granularityBytes) != 0 {
            grown.mark((bitmap.blockCount - 1)..<bitmap.blockCount)
        }
        return grown
    }
}

/// Why bytes are not a sealed layer; the reader adds the file's name.
package enum LayerFault: Error, Sendable, Hashable {
    /// Fewer bytes than a header has.
    case tooShort(bytes: Int)
    /// The first bytes are not those of a layer.
    case notALayer
    /// A version that this program does not know.
    case unknownVersion(UInt32)
    /// The header does not match its checksum.
    case headerDamaged
    /// The header's numbers do not belong together, or are beyond `LayerCodec.blockCountMax`.
    case implausible(diskBytes: UInt64, granularityBytes: UInt32, blockCount: UInt64)
    /// The body has another length than the header says.
    case bodyLength(expected: UInt64, found: Int)
    /// The body does not match its checksum, or does not hold the bits that the header counts.
    case bodyDamaged
}

extension LayerFault: CustomStringConvertible {
    package var description: String {
        switch self {
        case .tooShort(let bytes):
            "the layer has \(bytes) bytes, fewer than its header of \(LayerCodec.headerBytes)"
        case .notALayer:
            "the file is not a layer of a dirty bitmap"
        case .unknownVersion(let version):
            "the layer has version \(version), this program reads version \(LayerCodec.version)"
        case .headerDamaged:
            "the layer's header does not match its checksum"
        case .implausible(let diskBytes, let granularityBytes, let blockCount):
            """
            the layer's header says \(blockCount) blocks of \(granularityBytes) bytes \
            for a disk of \(diskBytes) bytes
            """
        case .bodyLength(let expected, let found):
            "the layer's body has \(found) bytes instead of \(expected)"
        case .bodyDamaged:
            "the layer's body does not match its checksum"
        }
    }
}

/// Sealed layers as bytes: a header of fixed size, then one zlib stream of words.
///
/// The words are a directory, one bit for each page of the bitmap, the lowest page in the lowest
/// bit, then the pages whose bit is set, in order: what is clean is not there. All integers are
/// little-endian. Offsets of the header: 0 magic, 8 version, 12 granularity in bytes, 16 bytes of
/// the disk, 24 serial, 32 blocks, 40 dirty blocks, 48 pages that are there, 56 bytes of the body,
/// 64 CRC-32 of the body, 68 CRC-32 of the 68 bytes before.
package enum LayerCodec {
    /// Bytes of the header.
    package static let headerBytes = 72
    /// The version that is written, and the only one read.
    package static let version: UInt32 = 2
    /// Most blocks of a layer: 128 TiB at 4 KiB or 2 PiB at 64 KiB; 4 GiB of words.
    package static let blockCountMax: UInt64 = 1 << 35

    private static let magic: [UInt8] = Array("nbdlayer".utf8)

    /// A layer's bytes; the bitmap has the identity's number of blocks, at most `blockCountMax`.
    package static func encode(_ bitmap: DirtyBitmap, identity: LayerIdentity) -> [UInt8] {
        precondition(UInt64(bitmap.blockCount) == identity.blockCount)
        precondition(identity.blockCount <= blockCountMax)
        let pages = bitmap.dirtyPages
        let body = Zlib.compress(words(bitmap, pages))
        var bytes: [UInt8] = []
        bytes.reserveCapacity(headerBytes + body.count)
        bytes.append(contentsOf: magic)
        bytes.append(littleEndian: version)
        bytes.append(littleEndian: identity.granularityBytes)
        bytes.append(littleEndian: identity.diskBytes)
        bytes.append(littleEndian: identity.serial)
        bytes.append(littleEndian: identity.blockCount)
        bytes.append(littleEndian: UInt64(bitmap.dirtyCount))
        bytes.append(littleEndian: UInt64(pages.count))
        bytes.append(littleEndian: UInt64(body.count))
        bytes.append(littleEndian: Zlib.crc32(body.span))
        bytes.append(littleEndian: Zlib.crc32(bytes.span))
        precondition(bytes.count == headerBytes)
        bytes.append(contentsOf: body)
        return bytes
    }

    private static func words(_ bitmap: DirtyBitmap, _ pages: [Int]) -> [UInt64] {
        let directoryCount = directoryCount(bitmap.blockCount)
        var words = [UInt64](repeating: 0, count: directoryCount)
        words.reserveCapacity(directoryCount + pages.count * DirtyBitmap.pageWords)
        for page in pages {
            words[page >> 6] |= 1 << UInt64(page & 63)
            words.append(contentsOf: bitmap.page(page))
        }
        return words
    }

    /// Words of the directory of pages.
    private static func directoryCount(_ blockCount: Int) -> Int {
        (DirtyBitmap.pageCount(blockCount: blockCount) + 63) / 64
    }

    /// The layer that bytes hold; they are exactly what `encode` made, or a fault is thrown.
    ///
    /// Allocates at most the words of the header's block count and directory, which are bounded by
    /// `blockCountMax` and by what the body's length can hold. `expected`: how many blocks it must
    /// have.
    package static func decode(
        _ bytes: [UInt8], blockCount expected: Int? = nil
    ) throws(LayerFault) -> (DirtyBitmap, LayerIdentity) {
        let header = try header(bytes.span)
        if let expected, header.identity.blockCount != UInt64(expected) {
            throw .implausible(
                diskBytes: header.identity.diskBytes,
                granularityBytes: header.identity.granularityBytes,
                blockCount: header.identity.blockCount)
        }
        let found = bytes.count - headerBytes
        guard header.bodyBytes == UInt64(found) else {
            throw .bodyLength(expected: header.bodyBytes, found: found)
        }
        let body = bytes.span.extracting(headerBytes...)
        guard Zlib.crc32(body) == header.bodyChecksum else { throw .bodyDamaged }
        let blockCount = Int(header.identity.blockCount)
        let wordCount =
            directoryCount(blockCount) + Int(header.pageCount) * DirtyBitmap.pageWords
        guard wordCount * MemoryLayout<UInt64>.size / Zlib.ratioMax <= found,
            let words = Zlib.decompress(body, wordCount: wordCount),
            let bitmap = bitmap(words, blockCount: blockCount),
            UInt64(bitmap.dirtyCount) == header.dirtyCount
        else { throw .bodyDamaged }
        return (bitmap, header.identity)
    }

    /// The bitmap of a body's words; nil when the directory names other pages than are there, or a
    /// bit is set past the last block.
    private static func bitmap(_ words: [UInt64], blockCount: Int) -> DirtyBitmap? {
        let directoryCount = directoryCount(blockCount)
        let pageCount = DirtyBitmap.pageCount(blockCount: blockCount)
        var bitmap = DirtyBitmap(blockCount: blockCount)
        var next = directoryCount
        for index in 0..<directoryCount {
            var left = words[index]
            while left != 0 {
                let page = index << 6 + left.trailingZeroBitCount
                left &= left - 1
                let end = next + DirtyBitmap.pageWords
                guard page < pageCount, end <= words.count else { return nil }
                bitmap.fill(page: page, with: Array(words[next..<end]))
                guard bitmap.page(page).elementsEqual(words[next..<end]) else { return nil }
                next = end
            }
        }
        return next == words.count ? bitmap : nil
    }

    private struct Header {
        var identity: LayerIdentity
        var dirtyCount: UInt64
        var pageCount: UInt64
        var bodyBytes: UInt64
        var bodyChecksum: UInt32
    }

    private static func header(_ bytes: Span<UInt8>) throws(LayerFault) -> Header {
        guard bytes.count >= headerBytes else { throw .tooShort(bytes: bytes.count) }
        for index in magic.indices where bytes[index] != magic[index] { throw .notALayer }
        let found = bytes.littleEndian(UInt32.self, at: 8)
        guard found == version else { throw .unknownVersion(found) }
        let checksum = Zlib.crc32(bytes.extracting(0..<(headerBytes - 4)))
        guard checksum == bytes.littleEndian(UInt32.self, at: headerBytes - 4) else {
            throw .headerDamaged
        }
        let granularityBytes = bytes.littleEndian(UInt32.self, at: 12)
        let diskBytes = bytes.littleEndian(UInt64.self, at: 16)
        let blockCount = bytes.littleEndian(UInt64.self, at: 32)
        let implausible = LayerFault.implausible(
            diskBytes: diskBytes, granularityBytes: granularityBytes, blockCount: blockCount)
        guard granularityBytes.nonzeroBitCount == 1 else { throw implausible }
        let identity = LayerIdentity(
            diskBytes: diskBytes, granularityBytes: granularityBytes,
            serial: bytes.littleEndian(UInt64.self, at: 24))
        guard identity.blockCount == blockCount, blockCount <= blockCountMax else {
            throw implausible
        }
        let pageCount = bytes.littleEndian(UInt64.self, at: 48)
        guard pageCount <= UInt64(DirtyBitmap.pageCount(blockCount: Int(blockCount))) else {
            throw implausible
        }
        return Header(
            identity: identity, dirtyCount: bytes.littleEndian(UInt64.self, at: 40),
            pageCount: pageCount, bodyBytes: bytes.littleEndian(UInt64.self, at: 56),
            bodyChecksum: bytes.littleEndian(UInt32.self, at: 64))
    }
}
