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
}
