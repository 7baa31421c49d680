import SystemLayer
import Tracking

/// A recording layer's bits as a file: a header of one page, then words in the machine's own order.
///
/// A hole, and what lies behind the file's end, are clean blocks.
enum LayerFile {
    /// Bytes in front of the words.
    static let headerBytes = 4096
    private static let wordBytes = MemoryLayout<UInt64>.size
    /// Bytes read at once.
    private static let chunkBytes = 1 << 20

    /// What a layer's file begins with: its form, its serial and the blocks it was made for.
    static func header(_ serial: UInt64, _ blockCount: Int) -> [UInt8] {
        page("nbdpull-bits 1 \(serial) \(blockCount)\n")
    }

    /// What a live file begins with; it says whose bits they are.
    static func liveHeader(_ session: String, _ serial: UInt64, _ blockCount: Int) -> [UInt8] {
        page("nbdpull-live 1 \(serial) \(blockCount) \(session)\n")
    }

    private static func page(_ text: String) -> [UInt8] {
        let bytes = Array(text.utf8)
        return bytes + [UInt8](repeating: 0, count: max(0, headerBytes - bytes.count))
    }

    private static func fields(_ file: any TrackedFile) throws(SystemFault) -> [Substring] {
        let bytes = try file.read(at: 0, count: headerBytes)
        guard bytes.count == headerBytes else { return [] }
        let line = bytes.prefix { $0 != UInt8(ascii: "\n") }
        return String(decoding: line, as: UTF8.self).split(separator: " ")
    }

    /// The bits of a layer's file for a disk of `blockCount` blocks.
    ///
    /// Throws when it is another file than the layer's, was made for more blocks, or is shorter
    /// than the blocks it was made for and the `recordedCount` blocks it must hold: nothing is
    /// taken for clean there.
    static func read(
        _ file: any TrackedFile, serial: UInt64, blockCount: Int, recordedCount: Int = 0
    ) throws(SystemFault) -> DirtyBitmap {
        let fields = try fields(file)
        guard fields.count == 4, fields[0] == "nbdpull-bits", fields[1] == "1",
            UInt64(fields[2]) == serial, let madeFor = Int(fields[3]), madeFor >= 0,
            madeFor <= blockCount
        else { throw SystemFault(call: "read", errno: Errno.invalid) }
        let size = try file.sizeBytes()
        let words = UInt64(DirtyBitmap.wordCount(blockCount: max(madeFor, recordedCount)))
        guard size >= UInt64(headerBytes), (size - UInt64(headerBytes)) / 8 >= words else {
            throw SystemFault(call: "read", errno: Errno.invalid)
        }
        return try bits(file, blockCount)
    }

    /// The bits of a live file; nil when it is not whole, or of another session or layer.
    static func readLive(
        _ file: any TrackedFile, session: String, serial: UInt64, blockCount: Int
    ) throws(SystemFault) -> DirtyBitmap? {
        let fields = try fields(file)
        guard fields.count == 5, fields[0] == "nbdpull-live", fields[1] == "1",
            UInt64(fields[2]) == serial, let madeFor = Int(fields[3]), madeFor >= 0,
            madeFor <= blockCount, fields[4] == session
        else { return nil }
        return try bits(file, blockCount)
    }

    private static func bits(
        _ file: any TrackedFile, _ blockCount: Int
    ) throws(SystemFault) -> DirtyBitmap {
        var bitmap = DirtyBitmap(blockCount: blockCount)
        let end = UInt64(headerBytes + DirtyBitmap.wordCount(blockCount: blockCount) * wordBytes)
        var position = UInt64(headerBytes)
        while position < end, let data = try file.data(from: position), data < end {
            // Whole pages of the bitmap.
            position = max(position, data - (data - UInt64(headerBytes)) % pageBytes)
            let bytes = try file.read(
                at: position, count: Int(min(UInt64(chunkBytes), end - position)))
            if bytes.isEmpty { break }
            fill(&bitmap, bytes, firstPage: Int((position - UInt64(headerBytes)) / pageBytes))
            position += UInt64(bytes.count + LazyWords.pageBytes - 1) / pageBytes * pageBytes
        }
        return bitmap
    }

    private static let pageBytes = UInt64(LazyWords.pageBytes)

    private static func fill(_ bitmap: inout DirtyBitmap, _ bytes: [UInt8], firstPage: Int) {
        for start in stride(from: 0, to: bytes.count, by: LazyWords.pageBytes) {
            let page = bytes[start..<min(start + LazyWords.pageBytes, bytes.count)]
            guard page.contains(where: { $0 != 0 }) else { continue }
            var words = [UInt64](repeating: 0, count: DirtyBitmap.pageWords)
            for (index, byte) in page.enumerated() {
                words[index / wordBytes] |= UInt64(byte) << UInt64(index % wordBytes * 8)
            }
            bitmap.fill(
                page: firstPage + start / LazyWords.pageBytes,
                with: UInt64(1).littleEndian == 1 ? words : words.map(\.byteSwapped))
        }
    }
}
