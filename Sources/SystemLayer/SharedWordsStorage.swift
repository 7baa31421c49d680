import Glibc
import Synchronization
package import Tables

/// Owns the memory behind `SharedWords`.
package final class SharedWordsStorage: Sendable {
    /// The array; valid while this object lives.
    package let view: SharedWords
    private let byteCount: Int
    private let address: UInt
    /// Runs of words that are a file's pages as long as nobody stores to them.
    private let borrowed = Mutex<[Range<Int>]>([])

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

    /// Makes the memory of a run of words at once that is going to be filled: in large pages where there
    /// are some, and without a fault for each.
    package func prepare(first: Int, count: Int) {
        precondition(first >= 0 && count >= 0 && first + count <= view.count)
        let start = (address + UInt(first * 4) + Self.largeBytes - 1) & ~(Self.largeBytes - 1)
        let end = (address + UInt((first + count) * 4)) & ~(Self.largeBytes - 1)
        guard start < end else { return }
        let pointer = unsafe UnsafeMutableRawPointer(bitPattern: start)
        // SAFETY: the range lies in the mapping; the calls change how its memory is made, not what it
        // holds. Where they are refused a page is made when it is stored to.
        unsafe _ = madvise(pointer, Int(end - start), Int32(MADV_HUGEPAGE))
        unsafe _ = madvise(pointer, Int(end - start), Self.populate)
    }

    private static let largeBytes: UInt = 2 << 20
    private static let pageBytes: UInt = 4096
    /// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`, of Linux 5.14.
    private static let populateRead: Int32 = 22
    private static let populate: Int32 = 23

    // MARK: Words of a file

    /// Makes a run of words those of a file, without a copy, as far as whole pages of it hold them.
    ///
    /// Returns which words are; the others are as they were. Before anybody else has a view. What is
    /// stored to them stays in memory, as it does for all words, and the file is not changed. Until
    /// `takeOver` nobody may change or shorten the file but by writing what the words hold. Throws when
    /// the words are lost and cannot be used.
    package func borrow(
        from descriptor: Int32, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) -> Range<Int> {
        precondition(first >= 0 && count >= 0 && first + count <= view.count)
        let none = first..<first
        let wordsInPage = Int(Self.pageBytes / 4)
        let (low, high) = (
            (first + wordsInPage - 1) / wordsInPage, (first + count) / wordsInPage
        )
        guard low < high else { return none }
        let start = position + UInt64(low * wordsInPage - first) * 4
        guard start.isMultiple(of: UInt64(Self.pageBytes)), start < UInt64(Int.max) else {
            return none
        }
        let place = unsafe UnsafeMutableRawPointer(
            bitPattern: address + UInt(low) * Self.pageBytes)
        let length = (high - low) * Int(Self.pageBytes)
        let flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
        // SAFETY: whole pages of the mapping made in init, which nobody has a view of yet, are replaced by
        // pages of a private mapping. Where that is refused they may be gone, and are made anew.
        let mapped = unsafe mmap(
            place, length, PROT_READ | PROT_WRITE, flags, descriptor, off_t(start))
        guard unsafe mapped != MAP_FAILED else {
            let anew = unsafe mmap(
                place, length, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0)
            guard unsafe anew != MAP_FAILED else { throw SystemFault(call: "mmap", errno: errno) }
            return none
        }
        let words = low * wordsInPage..<high * wordsInPage
        borrowed.withLock { $0.append(words) }
        return words
    }

    /// Whether borrowed words can be loaded, which they then are without a fault for each page.
    package func canLoad(_ words: Range<Int>) -> Bool { make(words, Self.populateRead) }

    /// Copies the pages that are still the file's: from then on it does not matter what becomes of it.
    ///
    /// On any thread, and while others load and store. Where there is no memory they stay the file's.
    package func takeOver() {
        let runs = borrowed.withLock { runs in
            defer { runs = [] }
            return runs
        }
        // A little at a time: whoever maps or unmaps memory waits meanwhile.
        let step = Int(Self.largeBytes / 4)
        for run in runs {
            for first in stride(from: run.lowerBound, to: run.upperBound, by: step) {
                _ = make(first..<min(first + step, run.upperBound), Self.populate)
            }
        }
    }

    private func make(_ words: Range<Int>, _ advice: Int32) -> Bool {
        precondition(words.lowerBound >= 0 && words.upperBound <= view.count)
        let start = (address + UInt(words.lowerBound * 4)) & ~(Self.pageBytes - 1)
        let end = address + UInt(words.upperBound * 4)
        // SAFETY: the range lies in the mapping; the call changes what memory is behind it, not what it
        // holds.
        return unsafe madvise(
            UnsafeMutableRawPointer(bitPattern: start), Int(end - start), advice) == 0
    }

    /// Counts what a run of words holds, and adds it; before anybody else has a view.
    package func count(_ range: Range<Int>, into tally: inout WordTally) {
        precondition(range.lowerBound >= 0 && range.upperBound <= view.count)
        guard !range.isEmpty else { return }
        let start = unsafe UnsafePointer<UInt32>(bitPattern: address + UInt(range.lowerBound * 4))
        guard let start = unsafe start else { return }
        // SAFETY: the range lies in the mapping, and nobody stores in it meanwhile.
        let words = unsafe UnsafeBufferPointer(start: start, count: range.count)
        // Counters as wide as the words: several are counted at a time.
        precondition(range.count <= Int(UInt32.max))
        var (zeros, ones, full): (UInt32, UInt32, UInt32) = (0, 0, 0)
        var largest = tally.largest
        var (sum, squares) = (tally.sum, tally.squares)
        for index in 0..<range.count {
            let word = unsafe words[index]
            zeros &+= word == 0 ? 1 : 0
            ones &+= word == 1 ? 1 : 0
            full &+= word == .max ? 1 : 0
            largest = max(largest, word == .max ? 0 : word)
            let above = UInt64(word < 2 || word == .max ? 0 : word &- 2)
            sum &+= above
            squares &+= above &* above
        }
        tally.zeros += Int(zeros)
        tally.ones += Int(ones)
        tally.full += Int(full)
        tally.others += range.count - Int(zeros) - Int(ones) - Int(full)
        tally.largest = largest
        tally.sum = sum
        tally.squares = squares
    }

    /// Counts those of a run of words that name a slot below a limit, and collects the slots that others
    /// name; before anybody else has a view.
    package func count(
        _ range: Range<Int>, below limit: UInt32, into tally: inout WordTally,
        others: inout [UInt32]
    ) {
        precondition(range.lowerBound >= 0 && range.upperBound <= view.count)
        precondition(limit <= .max - 2)
        guard !range.isEmpty else { return }
        let start = unsafe UnsafePointer<UInt32>(bitPattern: address + UInt(range.lowerBound * 4))
        guard let start = unsafe start else { return }
        // SAFETY: see above.
        let words = unsafe UnsafeBufferPointer(start: start, count: range.count)
        var (sum, squares) = (tally.sum, tally.squares)
        // Most words are below, so a few are looked at together, and one by one only where some are not.
        for first in stride(from: 0, to: range.count, by: Self.groupWords) {
            let group = first..<min(first + Self.groupWords, range.count)
            var (count, above): (UInt32, UInt32) = (0, 0)
            for index in group {
                let slot = unsafe words[index] &- 2
                let isBelow = slot < limit
                count &+= isBelow ? 1 : 0
                // Words of 0, 1 and all ones are the three largest.
                above &+= !isBelow && slot < .max - 2 ? 1 : 0
                let value = UInt64(isBelow ? slot : 0)
                sum &+= value
                squares &+= value &* value
            }
            tally.others += Int(count)
            guard above > 0 else { continue }
            for index in group {
                let slot = unsafe words[index] &- 2
                if slot >= limit, slot < .max - 2 { others.append(slot) }
            }
        }
        tally.sum = sum
        tally.squares = squares
    }

    private static let groupWords = 64
}
