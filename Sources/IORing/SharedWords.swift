import Glibc
import Synchronization

/// A lazily populated array of 32-bit words that one thread writes and any thread reads.
///
/// All words start as zero and cost no memory until first written. A `SharedWords` is a plain view:
/// copying it costs nothing. Whoever holds a view also holds (or is outlived by) the
/// `SharedWordsStorage` behind it.
// SAFETY (unchecked Sendable): all access goes through atomics; the memory stays mapped while the
// storage lives.
@safe
package struct SharedWords: @unchecked Sendable, BitwiseCopyable {
    package let count: Int
    private let words: UnsafeMutablePointer<UInt32>

    fileprivate init(count: Int, words: UnsafeMutablePointer<UInt32>) {
        self.count = count
        unsafe self.words = unsafe words
    }

    private func atomic(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
        precondition(index >= 0 && index < count, "word outside the array")
        // SAFETY: the index was checked; Atomic<UInt32> has the layout of UInt32.
        return unsafe UnsafeMutableRawPointer(words + index)
            .assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// The word's value; everything its writer did before storing it is visible after.
    package func load(_ index: Int) -> UInt32 {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.load(ordering: .acquiring)
    }

    /// Stores a value so that a reader who sees it also sees everything done before.
    package func store(_ value: UInt32, at index: Int) {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.store(value, ordering: .releasing)
    }

    /// Writes a run of words to a file, in the machine's own order; nil, or the errno.
    ///
    /// For the thread that stores them.
    func write(
        _ descriptor: Int32, first: Int, count: Int, at position: UInt64
    ) -> Int32? {
        precondition(first >= 0 && count >= 0 && first + count <= self.count)
        var done = 0
        while done < count * 4 {
            // SAFETY: the range was checked; the kernel reads it during the call only.
            let result = unsafe pwrite(
                descriptor, UnsafeRawPointer(words + first) + done, count * 4 - done,
                off_t(position) + off_t(done))
            if result < 0 {
                if errno == EINTR { continue }
                return errno
            }
            // A file takes some of it, or says why not.
            if result == 0 { return EIO }
            done += result
        }
        return nil
    }

    /// Stores a value and returns the one before; what was done before that one was stored is visible
    /// after.
    package func exchange(_ value: UInt32, at index: Int) -> UInt32 {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.exchange(value, ordering: .acquiringAndReleasing)
    }
}

/// Owns the memory behind `SharedWords`.
package final class SharedWordsStorage: Sendable {
    /// The array; valid while this object lives.
    package let view: SharedWords
    private let byteCount: Int
    private let address: UInt

    /// Maps an array of zero words.
    package init(count: Int) throws(SystemFault) {
        precondition(count > 0)
        byteCount = count * 4
        // SAFETY: an anonymous mapping of our own, unmapped in deinit.
        let memory = unsafe mmap(
            nil, byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        address = UInt(bitPattern: memory)
        unsafe view = SharedWords(
            count: count, words: memory.bindMemory(to: UInt32.self, capacity: count))
    }

    deinit {
        // SAFETY: the mapping made in init; holders of views keep this object alive.
        unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }

    /// Fills a run of words from a file, before anybody else has a view; false when the file ends
    /// within it.
    package func fill(
        from descriptor: Int32, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) -> Bool {
        precondition(first >= 0 && count >= 0 && first + count <= view.count)
        var done = 0
        while done < count * 4 {
            // SAFETY: the range lies in the mapping made in init, which this object keeps; the kernel
            // fills it during the call only.
            let result = unsafe pread(
                descriptor, UnsafeMutableRawPointer(bitPattern: address + UInt(first * 4 + done)),
                count * 4 - done, off_t(position) + off_t(done))
            if result < 0 {
                if errno == EINTR { continue }
                throw SystemFault(call: "pread", errno: errno)
            }
            if result == 0 { return false }
            done += result
        }
        return true
    }

    /// What a run of words holds, looked at before anybody else has a view.
    package struct Tally: Sendable, Hashable {
        package var zeros = 0
        package var ones = 0
        /// Words with all bits set.
        package var full = 0
        /// All others, and the largest of them.
        package var others = 0
        package var largest: UInt32 = 0

        package init() {}
    }

    /// Counts what a run of words holds, and adds it.
    package func count(_ range: Range<Int>, into tally: inout Tally) {
        precondition(range.lowerBound >= 0 && range.upperBound <= view.count)
        guard !range.isEmpty else { return }
        let start = unsafe UnsafePointer<UInt32>(bitPattern: address + UInt(range.lowerBound * 4))
        guard let start = unsafe start else { return }
        // SAFETY: the range lies in the mapping, and nobody stores in it while it is filled.
        let words = unsafe UnsafeBufferPointer(start: start, count: range.count)
        var (zeros, ones, full): (Int, Int, Int) = (0, 0, 0)
        var largest = tally.largest
        for index in 0..<range.count {
            let word = unsafe words[index]
            zeros &+= word == 0 ? 1 : 0
            ones &+= word == 1 ? 1 : 0
            full &+= word == .max ? 1 : 0
            largest = max(largest, word == .max ? 0 : word)
        }
        tally.others += range.count - zeros - ones - full
        tally.zeros += zeros
        tally.ones += ones
        tally.full += full
        tally.largest = largest
    }
}
