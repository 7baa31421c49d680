/// Latencies in nanoseconds, counted in buckets that are at most 1.6 % wide.
struct Histogram: Sendable {
    private static let fineBits = 6
    private var counts = [UInt64](repeating: 0, count: (64 - fineBits) << fineBits)
    private(set) var count: UInt64 = 0
    private(set) var largest: UInt64 = 0

    private static func bucket(_ value: UInt64) -> Int {
        let bits = 64 - value.leadingZeroBitCount
        guard bits > fineBits + 1 else { return Int(value) }
        let shift = bits - fineBits - 1
        return (shift << fineBits) + Int(value >> UInt64(shift))
    }

    /// The largest value of a bucket.
    private static func upperBound(_ bucket: Int) -> UInt64 {
        guard bucket >= 2 << fineBits else { return UInt64(bucket) }
        let shift = (bucket >> fineBits) - 1
        let mantissa = UInt64(bucket - (shift << fineBits))
        return ((mantissa + 1) << UInt64(shift)) - 1
    }

    mutating func add(_ value: UInt64) {
        counts[Self.bucket(value)] += 1
        count += 1
        largest = max(largest, value)
    }

    mutating func add(_ other: Histogram) {
        for index in counts.indices { counts[index] += other.counts[index] }
        count += other.count
        largest = max(largest, other.largest)
    }

    /// The value below or at which this share of all lies, in microseconds.
    func microseconds(_ share: Double) -> Double {
        guard count > 0 else { return 0 }
        let rank = UInt64((Double(count) * share).rounded(.up))
        var seen: UInt64 = 0
        for (bucket, number) in counts.enumerated() where number > 0 {
            seen += number
            if seen >= rank { return Double(min(Self.upperBound(bucket), largest)) / 1000 }
        }
        return Double(largest) / 1000
    }
}
