import Synchronization
package import SystemLayer
package import Tracking

/// The layer that records now: a dirty bitmap in memory, and two files that follow it.
///
/// The *layer's file* lies in the tracking directory and is brought up to date by `save`, on
/// threads that may wait. The *live file* lies in memory (tmpfs), gets every bit before the change
/// is submitted, and survives a killed process. Only the first has to be right: what it lacks, the
/// write-intent log names. A live file that cannot be written is dropped.
///
/// One thread marks, the disk's home ring. Others may read its bits only after a message from it.
package final class RecordingLayer: Sendable {
    package let serial: UInt64
    package let blockCount: Int
    /// log2 of the bytes that one bit covers.
    package let granularityShift: UInt64
    private let words: LazyWords
    /// Dirty blocks, kept for people; nothing is decided by it.
    private let dirty = Atomic<Int>(0)
    private let files: any TrackedDirectory
    private let saved: Mutex<Saved>
    private let live: LiveBits?

    private struct Saved {
        var file: any TrackedFile
        /// A call on the file has failed.
        ///
        /// What it holds is unknown, and nothing that it says later is believed: only a new file
        /// is.
        var isSpoiled = false
    }

    private init(
        serial: UInt64, blockCount: Int, granularityShift: UInt64, words: LazyWords,
        files: any TrackedDirectory, file: any TrackedFile, live: LiveBits?
    ) {
        self.serial = serial
        self.blockCount = blockCount
        self.granularityShift = granularityShift
        self.words = words
        self.files = files
        self.live = live
        saved = Mutex(Saved(file: file))
    }

    /// Blocks that are dirty.
    package var dirtyCount: Int { dirty.load(ordering: .relaxed) }

    /// The name of a layer's file.
    static func fileName(_ serial: UInt64) -> String { "layer-\(serial).bits" }

    private static func temporaryName(_ serial: UInt64) -> String { fileName(serial) + ".new" }

    /// Makes a layer's file with these bits, durable; one of that name is replaced in one step.
    ///
    /// It is a new file every time: whatever an older one could not keep, this one does. The name
    /// is durable as well, without `isNameDurable` once the directory is synced.
    static func create(
        in files: any TrackedDirectory, serial: UInt64, granularityShift: UInt64,
        bits: DirtyBitmap, live: LiveBits?, isNameDurable: Bool = true
    ) throws(SystemFault) -> RecordingLayer {
        let words = try LazyWords(count: DirtyBitmap.wordCount(blockCount: bits.blockCount))
        for page in bits.dirtyPages {
            let source = bits.page(page)
            let first = page * LazyWords.pageWords
            for place in source.indices where source[place] != 0 && first + place < words.count {
                words[first + place] = source[place]
            }
        }
        let file = try write(
            words, blockCount: bits.blockCount, serial: serial, in: files,
            isNameDurable: isNameDurable)
        for page in 0..<words.pageCount { _ = words.takeChange(page) }
        let layer = RecordingLayer(
            serial: serial, blockCount: bits.blockCount, granularityShift: granularityShift,
            words: words, files: files, file: file, live: live)
        layer.dirty.store(bits.dirtyCount, ordering: .relaxed)
        live?.begin(words, serial: serial, blockCount: bits.blockCount)
        return layer
    }

    private static func write(
        _ words: LazyWords, blockCount: Int, serial: UInt64, in files: any TrackedDirectory,
        isNameDurable: Bool = true
    ) throws(SystemFault) -> any TrackedFile {
        let name = temporaryName(serial)
        let file = try files.create(
            name, reserving: UInt64(LayerFile.headerBytes) + UInt64(words.count) * 8)
        do throws(SystemFault) {
            try file.write(LayerFile.header(serial, blockCount), at: 0)
            for page in words.usedPages { try write(words, page, to: file) }
            try file.sync()
            try files.rename(name, to: fileName(serial))
        } catch {
            try? files.remove(name)
            throw error
        }
        if isNameDurable { try files.sync() }
        return file
    }

    private static func write(
        _ words: LazyWords, _ page: Int, to file: any TrackedFile
    ) throws(SystemFault) {
        let first = page * LazyWords.pageWords
        try file.write(
            words, first: first, count: min(LazyWords.pageWords, words.count - first),
            at: UInt64(LayerFile.headerBytes + page * LazyWords.pageBytes))
    }

    // MARK: Recording

    /// Home ring only: marks the blocks that a byte range touches; the range is not empty.
    ///
    /// False when the live file is wrong and could not be dropped: the bits must not be believed
    /// after a kill.
    package func mark(offset: UInt64, length: UInt64) -> Bool {
        var block = Int(offset >> granularityShift)
        let end = Int((offset + length - 1) >> granularityShift) + 1
        precondition(end <= blockCount, "a change beyond the disk's end")
        let first = block >> 6
        var isChanged = false
        while block < end {
            let bit = block & 63
            let step = min(64 - bit, end - block)
            let run = step == 64 ? UInt64.max : (UInt64(1) << UInt64(step)) - 1
            if add(run << UInt64(bit), at: block >> 6) { isChanged = true }
            block += step
        }
        guard isChanged, let live else { return true }
        return live.store(words, first: first, count: (end - 1) >> 6 + 1 - first)
    }

    /// Home ring only: marks every block that is dirty in another bitmap; as `mark`.
    package func formUnion(_ other: DirtyBitmap) -> Bool {
        var isRight = true
        for page in other.dirtyPages {
            let first = page * DirtyBitmap.pageWords
            let source = other.page(page)
            let count = min(source.count, words.count - first)
            guard count > 0 else { break }
            var isChanged = false
            for place in 0..<count where source[place] != 0 {
                if add(source[place], at: first + place) { isChanged = true }
            }
            guard isChanged, let live else { continue }
            isRight = live.store(words, first: first, count: count) && isRight
        }
        return isRight
    }

    private func add(_ mask: UInt64, at index: Int) -> Bool {
        let present = words[index]
        let fresh = mask & ~present
        guard fresh != 0 else { return false }
        words[index] = present | fresh
        dirty.add(fresh.nonzeroBitCount, ordering: .relaxed)
        return true
    }

    /// The same layer for a disk that has grown from `oldBytes`; what is new is dirty.
    ///
    /// Home ring only, while no change is in flight; this object records no more. Its live file
    /// goes, as it tells of the smaller disk: after a kill the log counts. The layer's file is
    /// written anew by the next save. Throws, having changed nothing that matters, without memory,
    /// or when the live file can neither be removed nor written over.
    package func grown(
        to newBlockCount: Int, from oldBytes: UInt64, diskBytes: UInt64
    ) throws(SystemFault) -> RecordingLayer {
        precondition(newBlockCount >= blockCount, "a disk only grows")
        if let live, !live.drop() { throw SystemFault(call: "unlink", errno: Errno.io) }
        let wide = try LazyWords(count: DirtyBitmap.wordCount(blockCount: newBlockCount))
        for page in words.usedPages {
            let source = words.copyPage(page)
            let first = page * LazyWords.pageWords
            for place in source.indices where source[place] != 0 && first + place < wide.count {
                wide[first + place] = source[place]
            }
        }
        let layer = RecordingLayer(
            serial: serial, blockCount: newBlockCount, granularityShift: granularityShift,
            words: wide, files: files, file: saved.withLock { $0.file }, live: nil)
        layer.saved.withLock { $0.isSpoiled = true }
        layer.dirty.store(dirtyCount, ordering: .relaxed)
        if oldBytes < diskBytes {
            _ = layer.mark(offset: oldBytes, length: diskBytes - oldBytes)
        }
        return layer
    }

    /// The bits as they are, copied.
    package func snapshot() -> DirtyBitmap {
        var bitmap = DirtyBitmap(blockCount: blockCount)
        for page in words.usedPages { bitmap.fill(page: page, with: words.copyPage(page)) }
        return bitmap
    }

    // MARK: Saving

    /// Makes the bits durable that were set before the call; may wait as long as the storage does.
    ///
    /// After a failure the file is given up, and the next call begins a new one with all bits.
    package func save() throws(SystemFault) {
        let result = saved.withLock { saved in
            Result { () throws(SystemFault) in
                if saved.isSpoiled { return try saveAnew(&saved) }
                saved.isSpoiled = true
                for page in 0..<words.pageCount where words.takeChange(page) {
                    try Self.write(words, page, to: saved.file)
                }
                try saved.file.sync()
                saved.isSpoiled = false
            }
        }
        try result.get()
    }

    /// Makes all bits durable in a new file, whatever became of the old one.
    package func saveWhole() throws(SystemFault) {
        let result = saved.withLock { saved in
            Result { () throws(SystemFault) in try saveAnew(&saved) }
        }
        try result.get()
    }

    private func saveAnew(_ saved: inout Saved) throws(SystemFault) {
        saved.isSpoiled = true
        for page in 0..<words.pageCount { _ = words.takeChange(page) }
        saved.file = try Self.write(words, blockCount: blockCount, serial: serial, in: files)
        saved.isSpoiled = false
    }

    /// Removes the live file: the layer records no more.
    package func dropLive() { _ = live?.drop() }

    /// Whether a kill of the process would lose nothing.
    package var isLive: Bool { live?.isThere ?? false }
}
