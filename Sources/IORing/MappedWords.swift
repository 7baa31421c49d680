import CLibURing
import Glibc

/// A file of 64-bit words that is mapped into memory: what is stored survives a killed process.
///
/// The file begins with a header of one page. Its blocks are allocated before it is mapped, so a full
/// file system is an error at creation and never a fault at a store. One thread stores; another may
/// read only after a message from it. A loss of power can lose stores that `descriptor` was not
/// synced after.
@safe
package final class MappedWords: Sendable {
    /// Bytes in front of the words, for the owner's header.
    package static let headerBytes = 4096
    /// Words of a page, the unit in which it is known whether anything was stored.
    package static let pageWords = 512

    package let count: Int
    private let descriptor: OwnedDescriptor
    private let address: UInt
    private let byteCount: Int
    /// One word for each page: not zero when the page may hold a word that is not.
    private let used: SharedWordsStorage

    /// The file's descriptor, valid while this object lives; syncing it makes the words durable.
    package var raw: Int32 { descriptor.raw }

    /// Creates a file of zero words; it must not exist.
    ///
    /// The file is durable when this returns, its name when its directory has been synced.
    package init(creating path: String, header: [UInt8], count: Int) throws(SystemFault) {
        precondition(header.count <= Self.headerBytes && count >= 0)
        let descriptor = try FileCalls.open(path, [.write, .createNew])
        byteCount = Self.headerBytes + count * 8
        do throws(SystemFault) {
            let bytes = byteCount
            _ = try SystemFault.check("fallocate") {
                fallocate(descriptor.raw, 0, 0, off_t(bytes))
            }
            try FileCalls.write(descriptor.raw, header, at: 0)
            try FileCalls.sync(descriptor.raw)
            address = try Self.map(descriptor.raw, byteCount)
        } catch {
            try? FileCalls.remove(path)
            throw error
        }
        self.count = count
        self.descriptor = descriptor
        used = try SharedWordsStorage(count: Self.pageCount(count) + 1)
    }

    /// Maps an existing file; one with fewer words than needed gets zero words at its end.
    package init(opening path: String, countAtLeast: Int) throws(SystemFault) {
        let descriptor = try FileCalls.open(path, [.write])
        let found = Int(try FileCalls.facts(descriptor.raw).sizeBytes)
        guard found >= Self.headerBytes, (found - Self.headerBytes) % 8 == 0 else {
            throw SystemFault(call: "mmap", errno: EINVAL)
        }
        let size = max(found, Self.headerBytes + countAtLeast * 8)
        byteCount = size
        count = (size - Self.headerBytes) / 8
        try Self.readThrough(descriptor.raw, found)
        // Blocks that were never written may still be holes after a crash.
        _ = try SystemFault.check("fallocate") { fallocate(descriptor.raw, 0, 0, off_t(size)) }
        address = try Self.map(descriptor.raw, size)
        self.descriptor = descriptor
        used = try SharedWordsStorage(count: Self.pageCount(count) + 1)
        for page in 0..<Self.pageCount(count) where copyPage(page).contains(where: { $0 != 0 }) {
            used.view.store(1, at: page)
        }
    }

    private static func pageCount(_ count: Int) -> Int { (count + pageWords - 1) / pageWords }

    deinit {
        // SAFETY: the mapping made in init; this object is the only one that refers to it.
        unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }

    /// Reads the whole file, so that a disk that cannot be read is an error here and no fault later.
    private static func readThrough(_ descriptor: Int32, _ bytes: Int) throws(SystemFault) {
        _ = try FileCalls.readAll(descriptor, count: bytes)
    }

    private static func map(_ descriptor: Int32, _ bytes: Int) throws(SystemFault) -> UInt {
        // SAFETY: a shared mapping of our own file, unmapped in deinit.
        let memory = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        // As far as limits allow, so that no page in use is ever read from the disk again; pages are
        // locked when they are first touched, so this costs nothing now.
        unsafe _ = nbdpull_lock_when_touched(memory, bytes)
        return UInt(bitPattern: memory)
    }

    private func pointer(_ index: Int) -> UnsafeMutablePointer<UInt64> {
        precondition(index >= 0 && index < count, "word outside the file")
        // SAFETY: the index was checked; the mapping holds the header and `count` aligned words.
        let base = unsafe UnsafeMutableRawPointer(bitPattern: address)
        guard let base = unsafe base else { preconditionFailure("a mapping is never at zero") }
        return unsafe (base + Self.headerBytes + index * 8)
            .assumingMemoryBound(to: UInt64.self)
    }

    package subscript(_ index: Int) -> UInt64 {
        // SAFETY: see pointer().
        get { unsafe pointer(index).pointee }
        set {
            unsafe pointer(index).pointee = newValue
            let page = index / Self.pageWords
            if used.view.load(page) == 0 { used.view.store(1, at: page) }
        }
    }

    /// Numbers of the pages that may hold a word other than zero, ascending.
    package var usedPages: [Int] {
        (0..<Self.pageCount(count)).filter { used.view.load($0) != 0 }
    }

    /// Another mapping of the same file has stored something in these pages.
    package func noteUsed(_ pages: [Int]) {
        for page in pages { used.view.store(1, at: page) }
    }

    /// The words of one page, copied; zero words stand for those past the last.
    package func copyPage(_ page: Int) -> [UInt64] {
        let first = page * Self.pageWords
        let there = min(count - first, Self.pageWords)
        // SAFETY: pointer() checks the first word, and `there` words follow it in the mapping.
        let words = unsafe Array(UnsafeBufferPointer(start: pointer(first), count: there))
        return there == Self.pageWords
            ? words : words + [UInt64](repeating: 0, count: Self.pageWords - there)
    }

    /// The owner's header as it is in the file.
    package func header() -> [UInt8] {
        let base = unsafe UnsafePointer<UInt8>(bitPattern: address)
        // SAFETY: the header's page is mapped.
        return unsafe Array(UnsafeBufferPointer(start: base, count: Self.headerBytes))
    }
}
