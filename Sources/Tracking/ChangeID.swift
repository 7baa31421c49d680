/// Names a change of one disk - a write, zero or discard - from its admission to its end.
///
/// Its driver chooses the number, below the limit that it has told.
package struct ChangeID: Hashable, Sendable, BitwiseCopyable {
    package let number: Int

    package init(_ number: Int) { self.number = number }
}
