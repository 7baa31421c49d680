import Foundation

/// SplitMix64: a small generator whose whole run follows from one seed.
package struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    package init(seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// A number in `0..<bound`.
    package mutating func below(_ bound: Int) -> Int {
        precondition(bound > 0, "an empty range has no number")
        return Int(next() % UInt64(bound))
    }

    /// True once in `bound` calls on average.
    package mutating func oneIn(_ bound: Int) -> Bool { below(bound) == 0 }

    /// `count` random bytes.
    package mutating func bytes(_ count: Int) -> [UInt8] {
        var words: [UInt64] = []
        words.reserveCapacity((count + 7) / 8)
        for _ in 0..<(count + 7) / 8 { words.append(next()) }
        // SAFETY: the copy is taken before the closure returns; the array holds at least `count`
        // bytes, since its length was rounded up to whole words.
        return unsafe words.withUnsafeBytes { raw in unsafe [UInt8](raw.prefix(count)) }
    }
}

/// What decides a randomised run: the seed, and how long it may last.
package enum RunSettings {
    /// `NBDPULL_SEED` if set, else a fresh seed.
    ///
    /// Whoever uses it prints it.
    package static var seed: UInt64 {
        let text = ProcessInfo.processInfo.environment["NBDPULL_SEED"] ?? ""
        return UInt64(text) ?? UInt64.random(in: 0...UInt64(UInt32.max))
    }

    /// `NBDPULL_STRESS_SECONDS` if set, else the given time in seconds.
    package static func stressSeconds(default seconds: Double) -> Double {
        let text = ProcessInfo.processInfo.environment["NBDPULL_STRESS_SECONDS"] ?? ""
        return Double(text) ?? seconds
    }
}
