package import IORing
import Synchronization

/// The layer that records now: a dirty bitmap in a mapped file, so a killed process loses nothing.
///
/// One thread marks, the disk's home ring. Others may read its bits only after a message from it.
package final class RecordingLayer: Sendable {
    package let serial: UInt64
    package let blockCount: Int
    /// log2 of the bytes that one bit stands for.
    package let granularityShift: UInt64
    private let words: MappedWords
    /// Dirty blocks, kept for people; nothing is decided by it.
    private let dirty: Atomic<Int>

    private init(serial: UInt64, blockCount: Int, granularityShift: UInt64, words: MappedWords) {
        self.serial = serial
        self.blockCount = blockCount
        self.granularityShift = granularityShift
        self.words = words
        var count = 0
        for page in words.usedPages {
            for word in words.copyPage(page) { count += word.nonzeroBitCount }
        }
        dirty = Atomic(count)
    }

    /// The file's descriptor; syncing it makes the bits durable.
    package var raw: Int32 { words.raw }

    /// Blocks that are dirty.
    package var dirtyCount: Int { dirty.load(ordering: .relaxed) }

    /// What a layer's file begins with: its form, its serial and the blocks it was made for.
    private static func header(_ serial: UInt64, _ blockCount: Int) -> [UInt8] {
        Array("nbdpull-bits 1 \(serial) \(blockCount)\n".utf8)
    }

    /// The blocks that a layer's file was made for; nil when it is no file of this layer.
    private static func madeFor(_ header: [UInt8], serial: UInt64) -> Int? {
        let line = header.prefix { $0 != UInt8(ascii: "\n") }
        let fields = String(decoding: line, as: UTF8.self).split(separator: " ")
        guard fields.count == 4, fields[0] == "nbdpull-bits", fields[1] == "1",
            UInt64(fields[2]) == serial
        else { return nil }
        return Int(fields[3])
    }

    /// The whole file of a layer in which every block is dirty.
    static func allDirtyFile(serial: UInt64, blockCount: Int) -> [UInt8] {
        var bitmap = DirtyBitmap(blockCount: blockCount)
        bitmap.mark(0..<blockCount)
        var bytes = header(serial, blockCount)
        bytes.append(
            contentsOf: repeatElement(0, count: MappedWords.headerBytes - bytes.count))
        for index in 0..<DirtyBitmap.wordCount(blockCount: blockCount) {
            let word = bitmap.word(index)
            // The mapped words are in the machine's own order.
            for byte in 0..<8 {
                bytes.append(UInt8(truncatingIfNeeded: word.littleEndian >> UInt64(8 * byte)))
            }
        }
        return bytes
    }

    /// Makes a new, clean layer; the file must not exist.
    package static func create(
        path: String, serial: UInt64, blockCount: Int, granularityShift: UInt64
    ) throws(SystemFault) -> RecordingLayer {
        let words = try MappedWords(
            creating: path, header: header(serial, blockCount), count: (blockCount + 63) / 64)
        return RecordingLayer(
            serial: serial, blockCount: blockCount, granularityShift: granularityShift,
            words: words)
    }

    /// Opens a layer's file, which is made longer when the disk has grown.
    ///
    /// Throws when it is another file than the layer's, or holds fewer than the `recordedCount`
    /// blocks that it must hold, or fewer than it was made for: nothing is taken for clean there.
    package static func open(
        path: String, serial: UInt64, blockCount: Int, granularityShift: UInt64,
        recordedCount: Int = 0
    ) throws(SystemFault) -> RecordingLayer {
        let bytes = try FileCalls.open(path, [])
        let size = try FileCalls.facts(bytes.raw).sizeBytes
        let headerBytes = UInt64(MappedWords.headerBytes)
        guard size >= headerBytes else { throw SystemFault(call: "read", errno: Errno.invalid) }
        let header = try FileCalls.readAll(bytes.raw, count: MappedWords.headerBytes)
        guard let madeFor = madeFor(header, serial: serial), madeFor <= blockCount,
            (size - headerBytes) / 8 >= UInt64((max(madeFor, recordedCount) + 63) / 64)
        else { throw SystemFault(call: "read", errno: Errno.invalid) }
        let words = try MappedWords(opening: path, countAtLeast: (blockCount + 63) / 64)
        return RecordingLayer(
            serial: serial, blockCount: blockCount, granularityShift: granularityShift,
            words: words)
    }

    /// Home ring only: marks the blocks that a byte range touches; the range is not empty.
    package func mark(offset: UInt64, length: UInt64) {
        var block = Int(offset >> granularityShift)
        let end = Int((offset + length - 1) >> granularityShift) + 1
        precondition(end <= blockCount, "a change beyond the disk's end")
        while block < end {
            let bit = block & 63
            let step = min(64 - bit, end - block)
            let run = step == 64 ? UInt64.max : (UInt64(1) << UInt64(step)) - 1
            add(run << UInt64(bit), at: block >> 6)
            block += step
        }
    }

    /// Home ring only: marks every block that is dirty in another bitmap.
    package func formUnion(_ other: DirtyBitmap) {
        for page in other.dirtyPages {
            let first = page * DirtyBitmap.pageWords
            let words = other.page(page)
            for place in words.indices where words[place] != 0 && first + place < self.words.count {
                add(words[place], at: first + place)
            }
        }
    }

    private func add(_ mask: UInt64, at index: Int) {
        let present = words[index]
        let fresh = mask & ~present
        guard fresh != 0 else { return }
        words[index] = present | fresh
        dirty.add(fresh.nonzeroBitCount, ordering: .relaxed)
    }

    /// This layer is `narrow`'s file, opened for a larger disk while `narrow` went on recording.
    ///
    /// Home ring only, before it marks anything here. `aheadBlocks` were marked since the file was
    /// opened, beyond what `narrow` can reach.
    package func takeOver(from narrow: RecordingLayer, aheadBlocks: Int) {
        // A page that was first stored to through the other mapping is not known here.
        words.noteUsed(narrow.words.usedPages)
        dirty.store(narrow.dirtyCount + aheadBlocks, ordering: .relaxed)
    }

    /// The bits as they are, copied.
    package func snapshot() -> DirtyBitmap {
        var bitmap = DirtyBitmap(blockCount: blockCount)
        // The file is longer than needed when a disk that had grown is small again.
        let pages = DirtyBitmap.pageCount(blockCount: blockCount)
        for page in words.usedPages where page < pages {
            bitmap.fill(page: page, with: words.copyPage(page))
        }
        return bitmap
    }

    /// Makes the bits durable.
    package func sync() throws(SystemFault) { try FileCalls.sync(raw) }
}
