import Glibc
import Synchronization

/// A file in memory (tmpfs) that follows an array of words, so that the next process finds them.
///
/// The thread that stores words notes which have changed, and brings them to the file by `flush`,
/// before it does what must not be done without them. Not a shared mapping: a store to one is a fault
/// of the process when there is no memory left, and to read what was never stored takes memory.
///
/// A plain view, as `SharedWords` is: copying it costs nothing, and `WordsMirrorStorage` outlives it.
// SAFETY (unchecked Sendable): the range is the storing thread's alone, the rest is constant or atomic;
// the block lives as long as the storage.
@safe
package struct WordsMirror: @unchecked Sendable, BitwiseCopyable {
    /// One that follows nothing.
    package static let none = unsafe WordsMirror(nil)

    fileprivate struct Block: ~Copyable {
        let descriptor: Int32
        /// Where the words begin in the file, and where its state is kept.
        let wordsPosition: UInt64
        let statePosition: UInt64
        var low = Int.max
        var high = 0
        let isGivenUp = Atomic<Bool>(false)

        init(descriptor: Int32, wordsPosition: UInt64, statePosition: UInt64) {
            self.descriptor = descriptor
            self.wordsPosition = wordsPosition
            self.statePosition = statePosition
        }
    }

    /// What the file's state says.
    package enum State: UInt32, Sendable, Hashable {
        /// The words are whole.
        case whole = 1
        /// What the words tell of is over.
        case closed = 2
        /// The words could not be brought to the file.
        case givenUp = 3
    }

    private let block: UnsafeMutablePointer<Block>?

    fileprivate init(_ block: UnsafeMutablePointer<Block>?) { unsafe self.block = unsafe block }

    /// Whether the file has every word that was flushed.
    package var isWhole: Bool {
        // SAFETY: the block lives as long as the storage, which outlives the view.
        guard let block = unsafe block else { return false }
        return unsafe !block.pointee.isGivenUp.load(ordering: .relaxed)
    }

    /// The storing thread only: a word has changed.
    package func note(_ index: Int) {
        // SAFETY: see isWhole.
        guard let block = unsafe block else { return }
        unsafe block.pointee.low = min(unsafe block.pointee.low, index)
        unsafe block.pointee.high = max(unsafe block.pointee.high, index + 1)
    }

    /// The storing thread only: the words that have changed are in the file, or it says that it is
    /// given up.
    package func flush(_ words: SharedWords) {
        // SAFETY: see isWhole.
        guard let block = unsafe block else { return }
        let (low, high) = unsafe (block.pointee.low, block.pointee.high)
        guard low < high else { return }
        unsafe block.pointee.low = .max
        unsafe block.pointee.high = 0
        guard isWhole else { return }
        let position = unsafe block.pointee.wordsPosition + UInt64(low) * 4
        let errno = unsafe words.write(
            block.pointee.descriptor, first: low, count: high - low, at: position)
        if errno != nil { giveUp() }
    }

    /// Any thread: the next process is to begin nothing with the file.
    package func close() { say(.closed) }

    /// Any thread: the file does not follow the words any more, and says so.
    package func giveUp() {
        // SAFETY: see isWhole.
        guard let block = unsafe block else { return }
        unsafe block.pointee.isGivenUp.store(true, ordering: .relaxed)
        say(.givenUp)
    }

    private func say(_ state: State) {
        // SAFETY: see isWhole.
        guard let block = unsafe block else { return }
        var word = state.rawValue
        let (descriptor, position) = unsafe (
            block.pointee.descriptor, off_t(block.pointee.statePosition)
        )
        while true {
            // SAFETY: four bytes of a local are read during the call. Its page is there: no room is
            // needed.
            let result = unsafe pwrite(descriptor, &word, 4, position)
            if result == 4 { return }
            if result < 0, errno == EINTR { continue }
            break
        }
        // A file without its first page says nothing.
        _ = ftruncate(descriptor, 0)
    }
}

/// Owns the file behind `WordsMirror`.
@safe
package final class WordsMirrorStorage: Sendable {
    /// The mirror; valid while this object lives.
    package let view: WordsMirror
    private let descriptor: OwnedDescriptor
    private let address: UInt

    /// Follows words with an open file, whose first word lies at `wordsPosition`.
    package init(
        _ descriptor: consuming OwnedDescriptor, wordsPosition: UInt64, statePosition: UInt64
    ) {
        // SAFETY: given back in deinit, once.
        let block = UnsafeMutablePointer<WordsMirror.Block>.allocate(capacity: 1)
        unsafe block.initialize(
            to: WordsMirror.Block(
                descriptor: descriptor.raw, wordsPosition: wordsPosition,
                statePosition: statePosition))
        unsafe view = WordsMirror(block)
        address = UInt(bitPattern: block)
        self.descriptor = descriptor
    }

    /// The descriptor's number, valid while this object lives.
    package var raw: Int32 { descriptor.raw }

    deinit {
        // SAFETY: allocated in init; holders of views keep this object alive.
        if let block = unsafe UnsafeMutablePointer<WordsMirror.Block>(bitPattern: address) {
            unsafe block.deinitialize(count: 1)
            unsafe block.deallocate()
        }
    }
}
