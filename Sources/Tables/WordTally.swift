/// How many words of an array have which value.
package struct WordTally: Sendable, Hashable {
    package var zeros = 0
    package var ones = 0
    /// Words with all bits set.
    package var full = 0
    package var others = 0
    /// Of all words that are not full.
    package var largest: UInt32 = 0
    /// The sum of what all others are above 2, and the sum of its squares, modulo 2^64.
    package var sum: UInt64 = 0
    package var squares: UInt64 = 0

    package init() {}

    /// Counts one word.
    package mutating func add(_ word: UInt32) {
        switch word {
        case 0: zeros += 1
        case 1: ones += 1
        case .max: full += 1
        default: add(ascendingFrom: word, count: 1)
        }
        if word != .max { largest = max(largest, word) }
    }

    /// Counts words that are neither of the above and ascend by one from the first on; at most 2^16
    /// of them.
    package mutating func add(ascendingFrom first: UInt32, count: Int) {
        precondition(first >= 2 && count > 0 && count <= 1 << 16)
        let (least, words) = (UInt64(first) - 2, UInt64(count))
        let steps = words * (words - 1)
        others += count
        largest = max(largest, first + UInt32(count - 1))
        sum &+= least &* words &+ steps / 2
        squares &+= least &* least &* words &+ least &* steps &+ steps * (2 * words - 1) / 6
    }

    /// Takes in what other words are counted.
    package mutating func add(_ other: WordTally) {
        zeros += other.zeros
        ones += other.ones
        full += other.full
        others += other.others
        largest = max(largest, other.largest)
        sum &+= other.sum
        squares &+= other.squares
    }
}
