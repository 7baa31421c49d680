/// How many words of an array have which value.
package struct WordTally: Sendable, Hashable {
    package var zeros = 0
    package var ones = 0
    /// Words with all bits set.
    package var full = 0
    /// All others, and the largest of them.
    package var others = 0
    package var largest: UInt32 = 0
    /// The sum of what all others are above 2, and the sum of its squares, modulo 2^64.
    package var sum: UInt64 = 0
    package var squares: UInt64 = 0

    package init() {}

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
