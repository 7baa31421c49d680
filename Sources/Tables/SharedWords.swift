public import Synchronization

/// A lazily populated array of 32-bit words that one thread writes and any thread reads.
///
/// All words start as zero and cost no memory until first written. A `SharedWords` is a plain view:
/// copying it costs nothing. The holder of a view also holds (or is outlived by) what
/// keeps the memory behind it, a `SharedWordsStorage`.
// SAFETY (unchecked Sendable): all access goes through atomics; the memory stays mapped while the
// storage lives.
@safe
@frozen
public struct SharedWords: @unchecked Sendable, BitwiseCopyable {
    public let count: Int
    @usableFromInline
    let words: UnsafeMutablePointer<UInt32>

    /// A view of `count` words that are mapped and zero at first, for as long as any view is used.
    @inlinable
    public init(count: Int, words: UnsafeMutablePointer<UInt32>) {
        self.count = count
        unsafe self.words = unsafe words
    }

    @inlinable
    func atomic(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
        precondition(index >= 0 && index < count, "word outside the array")
        // SAFETY: the index was checked; Atomic<UInt32> has the layout of UInt32.
        return unsafe UnsafeMutableRawPointer(words + index)
            .assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// The word's value; everything its writer did before storing it is visible after.
    @inlinable
    public func load(_ index: Int) -> UInt32 {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.load(ordering: .acquiring)
    }

    /// Stores a value so that a reader who sees it also sees everything done before.
    @inlinable
    public func store(_ value: UInt32, at index: Int) {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.store(value, ordering: .releasing)
    }

    /// Stores a value and returns the one before; what was done before that one was stored is
    /// visible after.
    @inlinable
    public func exchange(_ value: UInt32, at index: Int) -> UInt32 {
        // SAFETY: see atomic().
        unsafe atomic(index).pointee.exchange(value, ordering: .acquiringAndReleasing)
    }
}
