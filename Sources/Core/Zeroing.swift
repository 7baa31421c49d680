/// A guest's zeroing or discarding request, part by part.
///
/// Whole pages first, by the file system or device, so that a refused FAST_ZERO has changed
/// nothing; then the pieces of pages at both ends, by writing. A discard leaves those alone.
package struct Zeroing: Sendable, Hashable {
    /// What comes next.
    package enum Part: Sendable, Hashable {
        /// Zero or discard whole pages, from the first of these on, as many as one step may; `took`
        /// says how many.
        case pages(Range<UInt64>, isFirst: Bool)
        /// Write zeros here.
        case edge(Range<UInt64>)
        /// All is changed: make it durable if that is wanted.
        case sync
        case done
    }

    /// What the request waits for.
    package enum Place: Sendable, Hashable {
        case waiting
        /// An instant waits for it.
        case working
        /// It changes nothing more, but is at work.
        case syncing
    }

    private enum Stage: Hashable { case firstPages, head, pages, tail, sync, done }

    package var place = Place.waiting
    /// The pages go by writing zeros, as the source cannot do better.
    package var writesZeros = false
    private var stage = Stage.firstPages
    private let isDiscard: Bool
    private let bytes: Range<UInt64>
    /// Where a write has to be cut.
    private let cut: UInt64
    private let pages: Range<UInt64>
    /// Where the whole pages go on.
    private var position: UInt64

    private static let pageBytes: UInt64 = 4096

    /// `cut`: no write reaches over this byte of the disk.
    package init(_ bytes: Range<UInt64>, isDiscard: Bool, cut: UInt64) {
        self.bytes = bytes
        self.isDiscard = isDiscard
        self.cut = cut
        let page = Self.pageBytes
        let start = (bytes.lowerBound + page - 1) / page * page
        let end = bytes.upperBound / page * page
        pages = start < end ? start..<end : start..<start
        position = pages.lowerBound
    }

    /// How far a step that begins and ends there may reach, so that it has only whole units of the
    /// disk, or else is a part of one.
    package static func wholeUnits(
        _ step: Range<UInt64>, unit: UInt64, diskEnd: UInt64
    ) -> (end: UInt64, isWhole: Bool) {
        let start = step.lowerBound / unit * unit
        let next = start + unit
        guard start == step.lowerBound, next <= step.upperBound || diskEnd == step.upperBound
        else { return (min(step.upperBound, next), false) }
        return (diskEnd == step.upperBound ? diskEnd : step.upperBound / unit * unit, true)
    }

    /// Whether none of the whole pages is taken yet.
    package var isUntouched: Bool { position == pages.lowerBound }

    /// Takes the next part.
    package mutating func next() -> Part {
        while true {
            switch stage {
            case .firstPages:
                stage = isDiscard ? .pages : .head
                if let rest { return .pages(rest, isFirst: true) }
            case .head:
                stage = .pages
                if !head.isEmpty { return .edge(head) }
            case .pages:
                if let rest { return .pages(rest, isFirst: false) }
                stage = isDiscard ? .sync : .tail
            case .tail:
                stage = .sync
                if !tail.isEmpty { return .edge(tail) }
            case .sync:
                stage = .done
                return .sync
            case .done: return .done
            }
        }
    }

    /// A step has taken the pages up to there.
    package mutating func took(upTo end: UInt64) { position = end }

    /// The last step did nothing and is taken again, another way.
    package mutating func giveBack(_ count: UInt64) {
        position -= count
        if isUntouched { stage = .firstPages }
    }

    /// Nothing is to be done with the whole pages.
    package mutating func skipPages() { position = pages.upperBound }

    /// Nothing more is to be done at all.
    package mutating func abandon() { stage = .done }

    private var rest: Range<UInt64>? {
        position < pages.upperBound ? position..<pages.upperBound : nil
    }

    private var head: Range<UInt64> {
        guard pages.isEmpty else { return bytes.lowerBound..<pages.lowerBound }
        let end = bytes.lowerBound < cut ? min(bytes.upperBound, cut) : bytes.upperBound
        return bytes.lowerBound..<end
    }

    private var tail: Range<UInt64> {
        pages.isEmpty
            ? head.upperBound..<bytes.upperBound : pages.upperBound..<bytes.upperBound
    }
}
