import UnitSupport

/// The random choices of one step of a history.
///
/// Every step has a seed of its own, so the others stay what they are when some are left out.
package struct Draw: Sendable {
    private var generator: SplitMix64

    package init(seed: UInt64) { generator = SplitMix64(seed: seed) }

    /// A number below `bound`, which is not zero.
    package mutating func below(_ bound: Int) -> Int { generator.below(bound) }

    /// True so many times of a hundred.
    package mutating func chance(_ percent: Int) -> Bool { generator.below(100) < percent }

    /// One of the elements; nil when there is none.
    package mutating func pick<Element>(_ elements: [Element]) -> Element? {
        elements.isEmpty ? nil : elements[below(elements.count)]
    }

    /// An index, chosen by weight; at least one weight is not zero.
    package mutating func index(weights: [Int]) -> Int {
        var left = below(weights.reduce(0, +))
        for (index, weight) in weights.enumerated() {
            if left < weight { return index }
            left -= weight
        }
        return weights.count - 1
    }
}

/// Which steps of a history are taken: all, or those that shrinking has left.
package struct StepList: Sendable, Hashable {
    package var seed: UInt64
    /// Numbers of the steps that are taken, ascending.
    package var taken: [Int]

    /// All of a history's first steps.
    package init(seed: UInt64, count: Int) {
        self.seed = seed
        taken = Array(0..<count)
    }

    package init(seed: UInt64, taken: [Int]) {
        self.seed = seed
        self.taken = taken
    }

    /// The seed of one step.
    package func stepSeed(_ number: Int) -> UInt64 {
        var generator = SplitMix64(seed: seed ^ (UInt64(number + 1) &* 0xD6E8_FEB8_6659_FD93))
        return generator.next()
    }

    /// The numbers as text that `--steps` reads: `3,5,9-14`.
    package var text: String {
        var parts: [String] = []
        var index = 0
        while index < taken.count {
            var end = index
            while end + 1 < taken.count, taken[end + 1] == taken[end] + 1 { end += 1 }
            parts.append(end == index ? "\(taken[index])" : "\(taken[index])-\(taken[end])")
            index = end + 1
        }
        return parts.joined(separator: ",")
    }

    /// Reads `text`; nil when it is none.
    package static func steps(_ text: String) -> [Int]? {
        var taken: [Int] = []
        for part in text.split(separator: ",") {
            let ends = part.split(separator: "-").map { Int($0) }
            guard let first = ends.first ?? nil, let last = ends.last ?? nil, ends.count <= 2,
                first <= last, last < 1_000_000
            else { return nil }
            taken += first...last
        }
        return taken
    }
}
