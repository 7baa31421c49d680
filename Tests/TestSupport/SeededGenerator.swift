import Foundation
import UnitSupport

/// What random storms are made of; its whole run follows from one seed.
package struct SeededGenerator: RandomNumberGenerator {
    private var generator: SplitMix64

    package init(seed: UInt64) { generator = SplitMix64(seed: seed) }

    package mutating func next() -> UInt64 { generator.next() }

    /// A number in `0..<bound`.
    package mutating func below(_ bound: Int) -> Int {
        precondition(bound > 0, "an empty range has no number")
        return Int(next() % UInt64(bound))
    }

    /// True once in `bound` calls on average.
    package mutating func oneIn(_ bound: Int) -> Bool { below(bound) == 0 }

    /// `count` random bytes; no two sectors of 512 bytes are equal.
    ///
    /// A debug build would take seconds for the many megabytes that a disk wants, so beyond the
    /// first 256 KiB only the start of each sector is fresh.
    package mutating func bytes(_ count: Int) -> [UInt8] {
        let freshBytes = 1 << 18
        var words: [UInt64] = []
        for _ in 0..<(min(count, freshBytes) + 7) / 8 { words.append(next()) }
        // SAFETY: the copy is taken before the closure returns.
        var result = unsafe words.withUnsafeBytes { raw in unsafe [UInt8](raw) }
        if result.count >= count { return Array(result.prefix(count)) }
        result.reserveCapacity(count)
        let pattern = result
        while result.count < count {
            result.append(contentsOf: pattern.prefix(count - result.count))
        }
        for sector in stride(from: freshBytes, to: count - 8, by: 512) {
            let stamp = next()
            for byte in 0..<8 {
                result[sector + byte] = UInt8(truncatingIfNeeded: stamp >> (8 * UInt64(byte)))
            }
        }
        return result
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

    /// `NBDPULL_WALK=full`: walks look at everything, in minutes instead of seconds.
    package static var isFullWalk: Bool {
        ProcessInfo.processInfo.environment["NBDPULL_WALK"] == "full"
    }

    /// `NBDPULL_STRESS_SECONDS` if set, else the given time in seconds.
    package static func stressSeconds(default seconds: Double) -> Double {
        let text = ProcessInfo.processInfo.environment["NBDPULL_STRESS_SECONDS"] ?? ""
        return Double(text) ?? seconds
    }
}
