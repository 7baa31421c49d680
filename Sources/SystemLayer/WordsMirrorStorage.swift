import CLinux
import Glibc
import Synchronization
package import Tables

/// A file in memory (tmpfs) that follows words, so that the next process finds them.
///
/// Not a shared mapping: a store to one is a fault of the process when there is no memory left, and
/// to read what was never stored takes memory.
@safe
package final class WordsMirrorStorage: Sendable {
    /// What the file says about its words, in four bytes of a page that is there.
    package enum State: UInt32, Sendable, Hashable {
        /// They are whole.
        case whole = 1
        /// What they tell of is over.
        case closed = 2
        /// They could not be brought to the file.
        case givenUp = 3
    }

    /// What the data path needs of it.
    private struct Target: ~Copyable {
        let descriptor: Int32
        /// Where the words begin in the file, and where its state is kept.
        let wordsPosition: UInt64
        let statePosition: UInt64
        let isGivenUp = Atomic<Bool>(false)

        init(descriptor: Int32, wordsPosition: UInt64, statePosition: UInt64) {
            self.descriptor = descriptor
            self.wordsPosition = wordsPosition
            self.statePosition = statePosition
        }

        func write(_ words: UnsafeRawPointer, _ first: Int, _ count: Int) {
            guard !isGivenUp.load(ordering: .relaxed) else { return }
            var done = 0
            while done < count * 4 {
                // SAFETY: the words lie in an array that outlives the call.
                let result = unsafe pwrite(
                    descriptor, words + first * 4 + done, count * 4 - done,
                    off_t(wordsPosition) + off_t(first * 4 + done))
                if result < 0, errno == EINTR { continue }
                guard result > 0 else { return giveUp() }
                done += result
            }
        }

        func giveUp() {
            isGivenUp.store(true, ordering: .relaxed)
            say(.givenUp)
        }

        func say(_ state: State) {
            var word = state.rawValue
            while true {
                // SAFETY: four bytes of a local are read during the call.
                let result = unsafe pwrite(descriptor, &word, 4, off_t(statePosition))
                if result == 4 { return }
                if result < 0, errno == EINTR { continue }
                break
            }
            // A file without its first page says nothing. The rest stays: it may be mapped.
            let mode = nbdpull_FALLOC_FL_PUNCH_HOLE | nbdpull_FALLOC_FL_KEEP_SIZE
            if fallocate(descriptor, mode, 0, off_t(wordsPosition)) == 0 { return }
            _ = ftruncate(descriptor, 0)
        }
    }

    /// The mirror; valid while this object lives.
    package let view: WordsMirror
    private let descriptor: OwnedDescriptor
    private let target: UInt
    private let block: UInt

    /// Follows words with an open file, whose first word lies at `wordsPosition`.
    package init(
        _ descriptor: consuming OwnedDescriptor, wordsPosition: UInt64, statePosition: UInt64
    ) {
        // SAFETY: both are given back in deinit, once.
        let target = UnsafeMutablePointer<Target>.allocate(capacity: 1)
        unsafe target.initialize(
            to: Target(
                descriptor: descriptor.raw, wordsPosition: wordsPosition,
                statePosition: statePosition))
        let block = UnsafeMutablePointer<WordsMirror.Block>.allocate(capacity: 1)
        // SAFETY: the functions are handed the target that was made here.
        unsafe block.initialize(
            to: WordsMirror.Block(
                owner: UnsafeMutableRawPointer(target),
                flush: { owner, words, first, count in
                    unsafe owner.assumingMemoryBound(to: Target.self).pointee
                        .write(words, first, count)
                },
                close: { owner in
                    unsafe owner.assumingMemoryBound(to: Target.self).pointee.say(.closed)
                }))
        unsafe view = WordsMirror(block)
        self.target = UInt(bitPattern: target)
        self.block = UInt(bitPattern: block)
        self.descriptor = descriptor
    }

    deinit {
        // SAFETY: allocated in init; holders of views keep this object alive.
        if let block = unsafe UnsafeMutablePointer<WordsMirror.Block>(bitPattern: block) {
            unsafe block.deinitialize(count: 1)
            unsafe block.deallocate()
        }
        if let target = unsafe UnsafeMutablePointer<Target>(bitPattern: target) {
            unsafe target.deinitialize(count: 1)
            unsafe target.deallocate()
        }
    }

    /// The descriptor's number, valid while this object lives.
    package var raw: Int32 { descriptor.raw }

    /// Whether the file has every word that was flushed.
    package var isWhole: Bool {
        // SAFETY: made in init, and gone with this object.
        guard let target = unsafe UnsafeMutablePointer<Target>(bitPattern: target) else {
            return false
        }
        return unsafe !target.pointee.isGivenUp.load(ordering: .relaxed)
    }

    /// Any thread: the file does not follow the words any more, and says so.
    package func giveUp() {
        // SAFETY: see isWhole.
        guard let target = unsafe UnsafeMutablePointer<Target>(bitPattern: target) else { return }
        unsafe target.pointee.giveUp()
    }
}
