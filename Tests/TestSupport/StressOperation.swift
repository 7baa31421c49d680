/// One command of the stress writer, from its start to its end.
package final class StressOperation {
    package enum Kind: String, Sendable {
        case write, zero, trim, read, flush
    }

    package let kind: Kind
    package let disk: Int
    package let offset: Int
    package let count: Int
    /// What the range holds afterwards: known from the start for writes and zeroes, for trims
    /// read back before anything else may touch the range.
    package internal(set) var content: [UInt8]
    /// The writer's clock just before the command left.
    package let startedAt: Int
    /// The writer's clock when its reply was seen.
    package internal(set) var finishedAt: Int?

    let begun: ContinuousClock.Instant
    /// The number of the command that its disk has now.
    var number: Int
    /// Whether the oracle holds the content.
    var isApplied = false
    /// A trim that has ended and whose range is being read back.
    var isReadingBack = false

    package var end: Int { offset + count }
    package var changesData: Bool { kind == .write || kind == .zero || kind == .trim }

    init(
        kind: Kind, disk: Int, offset: Int, count: Int, content: [UInt8], startedAt: Int,
        number: Int
    ) {
        self.kind = kind
        self.disk = disk
        self.offset = offset
        self.count = count
        self.content = content
        self.startedAt = startedAt
        self.number = number
        begun = .now
    }

    package func overlaps(_ otherOffset: Int, _ otherCount: Int) -> Bool {
        offset < otherOffset + otherCount && otherOffset < end
    }

    var summary: String { "\(kind.rawValue) \(offset)+\(count) on disk \(disk)" }
}
