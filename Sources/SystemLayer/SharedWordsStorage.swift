import Glibc
package import Tables

/// Owns the memory behind `SharedWords`.
package final class SharedWordsStorage: Sendable {
    /// The array; valid while this object lives.
    package let view: SharedWords
    private let byteCount: Int
    let address: UInt

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
            // SAFETY: the range lies in the mapping made in init, which this object keeps; the
            // kernel fills it during the call only.
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

    /// Has a run of words be those of a file, before anybody else has a view: a page of them is the
    /// file's own until a word in it is stored to, and then a copy.
    ///
    /// The file must lie in memory, have data there and never be cut. Nothing is done, and false
    /// returned, where the run does not begin with a page of both.
    package func map(
        _ descriptor: Int32, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) -> Bool {
        precondition(first >= 0 && count > 0 && first + count <= view.count)
        let page = UInt(FileCalls.pageBytes)
        let start = address + UInt(first * 4)
        guard start.isMultiple(of: page), position.isMultiple(of: UInt64(page)) else {
            return false
        }
        // SAFETY: the range lies in the mapping made in init, whose last page is whole, and nobody
        // has looked at it; what takes its place goes with it in deinit.
        let memory = unsafe mmap(
            UnsafeMutableRawPointer(bitPattern: start), count * 4, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, descriptor, off_t(position))
        guard unsafe memory != MAP_FAILED else { throw SystemFault(call: "mmap", errno: errno) }
        return true
    }

    /// Looks up all pages of a run that was mapped: what is not there any more is an error now, and
    /// not the end of the process later.
    package func lookUp(first: Int, count: Int) throws(SystemFault) {
        precondition(first >= 0 && count >= 0 && first + count <= view.count)
        let page = UInt(FileCalls.pageBytes)
        let start = (address + UInt(first * 4)) & ~(page - 1)
        let end = address + UInt((first + count) * 4)
        while true {
            // SAFETY: the range lies in the mapping; its pages are looked up, not changed.
            let result = unsafe madvise(
                UnsafeMutableRawPointer(bitPattern: start), Int(end - start), Self.populateRead)
            if result == 0 { return }
            if errno != EINTR { throw SystemFault(call: "madvise", errno: errno) }
        }
    }

    /// `MADV_POPULATE_READ`, of Linux 5.14.
    private static let populateRead: Int32 = 22

    /// Makes the memory of a run of words at once that is going to be filled: in large pages where
    /// there are some, and without a fault for each.
    package func prepare(first: Int, count: Int) {
        precondition(first >= 0 && count >= 0 && first + count <= view.count)
        let start = (address + UInt(first * 4) + Self.largeBytes - 1) & ~(Self.largeBytes - 1)
        let end = (address + UInt((first + count) * 4)) & ~(Self.largeBytes - 1)
        guard start < end else { return }
        let pointer = unsafe UnsafeMutableRawPointer(bitPattern: start)
        // SAFETY: the range lies in the mapping; the calls change how its memory is made, not what
        // it holds. Where they are refused a page is made when it is stored to.
        unsafe _ = madvise(pointer, Int(end - start), Int32(MADV_HUGEPAGE))
        unsafe _ = madvise(pointer, Int(end - start), Self.populate)
    }

    private static let largeBytes: UInt = 2 << 20
    /// `MADV_POPULATE_WRITE`, of Linux 5.14.
    private static let populate: Int32 = 23
}
