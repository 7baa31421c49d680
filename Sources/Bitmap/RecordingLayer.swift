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
        for index in 0..<words.count { count += words[index].nonzeroBitCount }
        dirty = Atomic(count)
    }

    /// The file's descriptor; syncing it makes the bits durable.
    package var raw: Int32 { words.raw }

    /// Blocks that are dirty.
    package var dirtyCount: Int { dirty.load(ordering: .relaxed) }

    /// Makes a new, clean layer; the file must not exist.
    package static func create(
        path: String, serial: UInt64, blockCount: Int, granularityShift: UInt64
    ) throws(SystemFault) -> RecordingLayer {
        let words = try MappedWords(
            creating: path, header: Array("nbdpull-bits 1\n".utf8), count: (blockCount + 63) / 64)
        return RecordingLayer(
            serial: serial, blockCount: blockCount, granularityShift: granularityShift,
            words: words)
    }

    /// Opens a layer's file, which is made longer when the disk has grown.
    package static func open(
        path: String, serial: UInt64, blockCount: Int, granularityShift: UInt64
    ) throws(SystemFault) -> RecordingLayer {
        let needed = (blockCount + 63) / 64
        let words = try MappedWords(opening: path, countAtLeast: needed)
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
        let words = other.words
        for index in 0..<min(words.count, self.words.count) where words[index] != 0 {
            add(words[index], at: index)
        }
    }

    private func add(_ mask: UInt64, at index: Int) {
        let present = words[index]
        let fresh = mask & ~present
        guard fresh != 0 else { return }
        words[index] = present | fresh
        dirty.add(fresh.nonzeroBitCount, ordering: .relaxed)
    }

    /// The bits as they are, copied.
    package func snapshot() -> DirtyBitmap {
        // The file is longer than needed when a disk that had grown is small again.
        let needed = DirtyBitmap.wordCount(blockCount: blockCount)
        return DirtyBitmap(words: Array(words.copyWords().prefix(needed)), blockCount: blockCount)
    }

    /// Makes the bits durable.
    package func sync() throws(SystemFault) { try FileCalls.sync(raw) }
}
