/// Some of a connection's meta contexts, by their ids.
///
/// Ids are below `ProtocolLimits.contextsMax`, so the set has a fixed size and allocates nothing.
package struct ContextSet: Equatable, Sendable, BitwiseCopyable {
    private static let wordBits = UInt64.bitWidth
    private var words = SIMD4<UInt64>()

    /// The empty set.
    package init() {}

    /// The contexts that negotiation selected.
    package init(_ contexts: [SelectedContext]) {
        for context in contexts { _ = insert(context.id) }
    }

    /// Whether nothing is in the set.
    package var isEmpty: Bool { words == SIMD4() }

    /// How many contexts are in the set.
    package var count: Int {
        words.indices.reduce(0) { $0 + words[$1].nonzeroBitCount }
    }

    /// Whether the context is in the set; any number may be asked for.
    package func contains(_ id: UInt32) -> Bool {
        guard id < UInt32(ProtocolLimits.contextsMax) else { return false }
        return words[Int(id) / Self.wordBits] >> (Int(id) % Self.wordBits) & 1 == 1
    }

    /// Whether a context with a higher id is in the set.
    package func containsAny(above id: UInt32) -> Bool {
        var next = id + 1
        while next < UInt32(ProtocolLimits.contextsMax) {
            if contains(next) { return true }
            next += 1
        }
        return false
    }

    /// Adds a context; false when it was there before.
    ///
    /// `id` is below `ProtocolLimits.contextsMax`.
    package mutating func insert(_ id: UInt32) -> Bool {
        precondition(id < UInt32(ProtocolLimits.contextsMax), "no context has so high an id")
        if contains(id) { return false }
        words[Int(id) / Self.wordBits] |= 1 << (Int(id) % Self.wordBits)
        return true
    }
}
