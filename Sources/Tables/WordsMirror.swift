/// Something that follows an array of words, such as a file by which the next process finds them.
///
/// The thread that stores words notes which have changed, and has them followed by `flush` before
/// it does what must not be done without them. Nothing else happens to what is only noted.
///
/// A plain view, as `SharedWords` is: copying it costs nothing, and what follows outlives it.
// SAFETY (unchecked Sendable): the range in the block is the storing thread's alone, the rest is
// constant; the block lives as long as what follows.
@safe
package struct WordsMirror: @unchecked Sendable, BitwiseCopyable {
    /// One that follows nothing.
    package static let none = unsafe WordsMirror(nil)

    /// What follows, and the words that it has not been told of.
    @unsafe
    package struct Block {
        /// What follows; handed to its own functions only.
        let owner: UnsafeMutableRawPointer
        /// Follows a run of words, given by where the first of all lies, its first and its count.
        let flush: @convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer, Int, Int) -> Void
        /// What the words tell of is over.
        let close: @convention(c) (UnsafeMutableRawPointer) -> Void
        var low = Int.max
        var high = 0

        package init(
            owner: UnsafeMutableRawPointer,
            flush:
                @escaping @convention(c) (
                    UnsafeMutableRawPointer, UnsafeRawPointer, Int, Int
                ) -> Void,
            close: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void
        ) {
            unsafe self.owner = unsafe owner
            unsafe self.flush = unsafe flush
            unsafe self.close = unsafe close
        }
    }

    private let block: UnsafeMutablePointer<Block>?

    /// A view of a block that lives as long as any view is used.
    package init(_ block: UnsafeMutablePointer<Block>?) { unsafe self.block = unsafe block }

    /// The storing thread only: a word has changed.
    package func note(_ index: Int) {
        // SAFETY: the block outlives the view.
        guard let block = unsafe block else { return }
        unsafe block.pointee.low = min(unsafe block.pointee.low, index)
        unsafe block.pointee.high = max(unsafe block.pointee.high, index + 1)
    }

    /// The storing thread only: the words that have changed are followed, or it is known that they
    /// are not.
    package func flush(_ words: SharedWords) {
        // SAFETY: see note.
        guard let block = unsafe block else { return }
        let (low, high) = unsafe (block.pointee.low, block.pointee.high)
        guard low < high else { return }
        precondition(high <= words.count, "words outside the array")
        unsafe block.pointee.low = .max
        unsafe block.pointee.high = 0
        // SAFETY: the range lies in the array, which outlives the call.
        unsafe block.pointee.flush(
            block.pointee.owner, UnsafeRawPointer(words.words), low, high - low)
    }

    /// Any thread: what the words tell of is over.
    package func close() {
        // SAFETY: see note.
        guard let block = unsafe block else { return }
        unsafe block.pointee.close(block.pointee.owner)
    }
}
