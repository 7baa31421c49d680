import Glibc
package import Tables

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
}
