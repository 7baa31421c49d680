import CLinux
import Glibc
import Synchronization
import Tables

/// An array of 64-bit words in anonymous memory: zero at first, and a page costs memory only once
/// something was stored in it.
///
/// One thread stores; any thread may read. A reader sees what the storing thread had stored before
/// it sent the message that made the reader look, and perhaps more. The memory has no file behind
/// it, so no full or broken disk turns a store into a fault.
@safe
package final class LazyWords: Sendable {
    /// Words of a page, the unit in which it is known whether anything was stored.
    package static let pageWords = 512
    /// Bytes of a page.
    package static let pageBytes = pageWords * 8

    package let count: Int
    private let address: UInt
    private let byteCount: Int
    /// One word for each page: not zero when the page may hold a word that is not.
    private let used: SharedWordsStorage
    /// One word for each page: not zero when something was stored since `takeChange`.
    private let changed: SharedWordsStorage

    /// Maps `count` zero words.
    package init(count: Int) throws(SystemFault) {
        guard count >= 0, count <= Int.max / 16 else {
            throw SystemFault(call: "mmap", errno: ENOMEM)
        }
        self.count = count
        let pages = Self.pageCount(count)
        byteCount = max(1, pages) * Self.pageBytes
        used = try SharedWordsStorage(count: pages + 1)
        changed = try SharedWordsStorage(count: pages + 1)
        // SAFETY: an anonymous mapping of our own, unmapped in deinit.
        let memory = unsafe mmap(
            nil, byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        // As far as limits allow, so that no page in use is ever swapped; pages are locked when
        // they are first touched, so this costs nothing now.
        unsafe _ = nbdpull_lock_when_touched(memory, byteCount)
        address = UInt(bitPattern: memory)
    }

    deinit {
        // SAFETY: the mapping made in init; this object is the only one that refers to it.
        unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }

    /// Pages that hold a number of words.
    package static func pageCount(_ count: Int) -> Int { (count + pageWords - 1) / pageWords }

    /// Pages of this array.
    package var pageCount: Int { Self.pageCount(count) }

    private func atomic(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        precondition(index >= 0 && index < pageCount * Self.pageWords, "word outside the array")
        guard let base = unsafe UnsafeMutableRawPointer(bitPattern: address) else {
            preconditionFailure("a mapping is never at zero")
        }
        // SAFETY: the index was checked against whole pages, all of which are mapped;
        // Atomic<UInt64> has the layout of UInt64.
        return unsafe (base + index * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// A word; only the storing thread sets it.
    package subscript(_ index: Int) -> UInt64 {
        // SAFETY: see atomic().
        get { unsafe atomic(index).pointee.load(ordering: .relaxed) }
        set {
            unsafe atomic(index).pointee.store(newValue, ordering: .relaxed)
            let page = index / Self.pageWords
            if used.view.load(page) == 0 { used.view.store(1, at: page) }
            // Stored every time: a reader that takes the change at this moment must not lose it.
            changed.view.store(1, at: page)
        }
    }

    /// Numbers of the pages that may hold a word other than zero, ascending.
    package var usedPages: [Int] {
        (0..<pageCount).filter { used.view.load($0) != 0 }
    }

    /// Whether something was stored in the page since this was last asked; asked by one thread at a
    /// time.
    package func takeChange(_ page: Int) -> Bool {
        changed.view.load(page) != 0 && changed.view.exchange(0, at: page) != 0
    }

    /// The words of one page, copied; zero words stand for those past the last.
    package func copyPage(_ page: Int) -> [UInt64] {
        let first = page * Self.pageWords
        return (first..<first + Self.pageWords).map { self[$0] }
    }

    /// Writes a run of words to a file at a position, in the machine's own order.
    func write(
        _ descriptor: Int32, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        precondition(first >= 0 && count >= 0 && first + count <= pageCount * Self.pageWords)
        var done = 0
        while done < count * 8 {
            let start = done
            // SAFETY: the words lie in the mapping, which this object keeps; the call reads
            // `count * 8` bytes of it.
            let result = unsafe pwrite(
                descriptor,
                UnsafeRawPointer(bitPattern: address + UInt(first * 8 + start)), count * 8 - start,
                off_t(position) + off_t(start))
            if result < 0 {
                if errno == EINTR { continue }
                throw SystemFault(call: "pwrite", errno: errno)
            }
            done += result
        }
    }
}
