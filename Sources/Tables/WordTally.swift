/// How many words of an array have which value.
package struct WordTally: Sendable, Hashable {
    package var zeros = 0
    package var ones = 0
    /// Words with all bits set.
    package var full = 0
    /// All others, and the largest of them.
    package var others = 0
    package var largest: UInt32 = 0

    package init() {}
}
