/// Places that several share: each takes one and gives it back.
package struct Places: Sendable, Hashable, BitwiseCopyable {
    package let limit: Int
    package private(set) var taken = 0

    package init(limit: Int) { self.limit = limit }

    package var isFull: Bool { taken == limit }

    /// Takes a place; there must be one.
    mutating func take() {
        precondition(taken < limit, "ask isFull first")
        taken += 1
    }

    mutating func giveBack() { taken -= 1 }
}
