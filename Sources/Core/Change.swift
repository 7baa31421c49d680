package import Tracking

/// A change of a disk: a write, or one step of a zero or discard.
package struct Change: Sendable, Hashable {
    package let id: ChangeID
    /// What the guest changes; not empty.
    package let bytes: Range<UInt64>
    /// The same in whole blocks of the source: what is added at the ends is read and written back.
    package let blocks: Range<UInt64>
    /// Nothing but holes are made holes again: no block counts as changed.
    package let changesNothing: Bool
    /// A step of a zeroing request that is at work: a begin that waits for the request waits for
    /// its steps, so they do not wait for the begin.
    package let isStep: Bool

    package init(
        _ id: ChangeID, bytes: Range<UInt64>, blocks: Range<UInt64>, changesNothing: Bool = false,
        isStep: Bool = false
    ) {
        self.id = id
        self.bytes = bytes
        self.blocks = blocks
        self.changesNothing = changesNothing
        self.isStep = isStep
    }

    /// Whether it reads and writes back bytes that are not its own.
    var isWidened: Bool { blocks != bytes }

    /// Whether one of the two would undo the other if both were at work.
    func overlaps(_ other: Change) -> Bool {
        (isWidened || other.isWidened) && blocks.overlaps(other.blocks)
    }
}

/// Names a zeroing or discarding request of one disk.
package struct ZeroingID: Hashable, Sendable, BitwiseCopyable {
    package let number: Int

    package init(_ number: Int) { self.number = number }
}

/// Where a change waits whose way on another part decides.
enum ParkedGate: Hashable {
    /// For old content to be copied.
    case copy
    /// For its regions to be marked in the write-intent log.
    case intent
}
