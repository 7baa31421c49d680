/// How many times something took how long, in steps of powers of two from 16 us to 33 s.
///
/// Counts only grow, so that readers can tell what came between two looks.
package struct DurationHistogram: Sendable, Hashable {
    /// The steps that have an upper bound.
    package static let boundCount = 22
    /// log2 of the first step's upper bound in microseconds.
    private static let firstShift = 4

    /// By step; the last one holds what took longer than every bound.
    package private(set) var counts = [UInt64](repeating: 0, count: boundCount + 1)
    /// The sum of all durations, in nanoseconds.
    package private(set) var totalNanoseconds: UInt64 = 0

    package init() {}

    /// How many durations there were.
    package var count: UInt64 { counts.reduce(0, &+) }

    /// The longest duration that a step with a bound counts, in nanoseconds.
    package static func boundNanoseconds(_ step: Int) -> UInt64 {
        1000 << UInt64(step + firstShift)
    }

    /// Adds one duration.
    package mutating func note(nanoseconds: UInt64) {
        let microseconds = nanoseconds / 1000 + (nanoseconds.isMultiple(of: 1000) ? 0 : 1)
        // The number of bits of what lies below the bound: 17 to 32 us belong to the second step.
        let bits = microseconds <= 1 ? 0 : UInt64.bitWidth - (microseconds - 1).leadingZeroBitCount
        counts[min(max(bits - Self.firstShift, 0), Self.boundCount)] &+= 1
        totalNanoseconds &+= nanoseconds
    }
}
