import Glibc
import PointInTime
import SystemLayer
import Tables

/// How many clusters of a disk were changed within the last hour, each counted once: what a backup
/// job of an hour would have kept in scratch at most.
///
/// A sketch (HyperLogLog with 1024 registers, 3 % off on average) for each of six spans of ten
/// minutes, so that it costs a few nanoseconds a cluster and 7 KiB, whatever the disk's size. The
/// disk's home ring notes; anybody reads.
final class OverwriteMeter: Sendable {
    /// Nanoseconds.
    static let spanLength: UInt64 = 600_000_000_000
    static let spans = 6
    /// A longer change counts as a number of clusters, without looking at which ones.
    static let sketchedClustersMax: UInt64 = 256

    private static let clusterBytes = UInt64(ClusterGeometry.clusterBytes)
    private static let registerBits = 10
    private static let registers = 1 << registerBits
    private static let registersPerWord = 4
    /// Of a span: its number, clusters of long changes, registers.
    private static let stampWord = 0
    private static let longWord = 1
    private static let firstRegister = 2
    private static let wordsPerSpan = firstRegister + registers / registersPerWord

    /// Nil when there was no memory for it: then nothing is known.
    private let storage: SharedWordsStorage?

    init() {
        storage = try? SharedWordsStorage(count: Self.spans * Self.wordsPerSpan)
    }

    /// Notes a change; called by the disk's home ring only.
    ///
    /// - Parameter now: the monotonic clock, nanoseconds
    func note(offset: UInt64, length: UInt64, now: UInt64) {
        guard length > 0, let words = storage?.view else { return }
        let span = now / Self.spanLength
        let base = Int(span % UInt64(Self.spans)) * Self.wordsPerSpan
        let stamp = Self.stamp(of: span)
        if words.load(base + Self.stampWord) != stamp { Self.begin(stamp, in: words, at: base) }
        let first = offset / Self.clusterBytes
        let end = offset % Self.clusterBytes + length
        let count = (end - 1) / Self.clusterBytes + 1
        guard count <= Self.sketchedClustersMax else {
            let sum = UInt64(words.load(base + Self.longWord)) + min(count, UInt64(UInt32.max))
            words.store(UInt32(clamping: sum), at: base + Self.longWord)
            return
        }
        for cluster in first..<(first + count) { Self.note(cluster, in: words, at: base) }
    }

    /// Bytes of the clusters that were changed within the last 50 to 60 minutes; nil when it is not
    /// known.
    func bytes(now: UInt64, diskBytes: UInt64) -> UInt64? {
        guard let words = storage?.view else { return nil }
        let span = now / Self.spanLength
        var ranks = [UInt8](repeating: 0, count: Self.registers)
        var long: UInt64 = 0
        for past in 0..<min(UInt64(Self.spans), span + 1) {
            let base = Int((span - past) % UInt64(Self.spans)) * Self.wordsPerSpan
            guard words.load(base + Self.stampWord) == Self.stamp(of: span - past) else { continue }
            long += UInt64(words.load(base + Self.longWord))
            for register in ranks.indices {
                ranks[register] = max(ranks[register], Self.rank(register, in: words, at: base))
            }
        }
        let clusters = Self.estimate(ranks) + Double(long)
        return UInt64(min(clusters * Double(Self.clusterBytes), Double(diskBytes)))
    }

    /// Never zero, which is what a span that nobody has written holds.
    private static func stamp(of span: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: span) | 1 << 31
    }

    private static func begin(_ stamp: UInt32, in words: SharedWords, at base: Int) {
        for word in 0..<wordsPerSpan { words.store(0, at: base + word) }
        words.store(stamp, at: base + stampWord)
    }

    private static func note(_ cluster: UInt64, in words: SharedWords, at base: Int) {
        let hash = mixed(cluster)
        let register = Int(hash & UInt64(registers - 1))
        // The bits that chose the register are zero here, so the count ends before them.
        let rank = UInt32((hash >> UInt64(registerBits)).leadingZeroBitCount - registerBits + 1)
        let place = base + firstRegister + register / registersPerWord
        let shift = UInt32(register % registersPerWord * 8)
        let word = words.load(place)
        guard word >> shift & 0xff < rank else { return }
        words.store(word & ~(0xff << shift) | rank << shift, at: place)
    }

    private static func rank(_ register: Int, in words: SharedWords, at base: Int) -> UInt8 {
        let word = words.load(base + firstRegister + register / registersPerWord)
        return UInt8(truncatingIfNeeded: word >> UInt32(register % registersPerWord * 8))
    }

    /// Spreads what differs in few bits over all of them (the finalizer of SplitMix64).
    private static func mixed(_ value: UInt64) -> UInt64 {
        var hash = value &+ 0x9e37_79b9_7f4a_7c15
        hash = (hash ^ hash >> 30) &* 0xbf58_476d_1ce4_e5b9
        hash = (hash ^ hash >> 27) &* 0x94d0_49bb_1331_11eb
        return hash ^ hash >> 31
    }

    /// How many different clusters registers of these ranks have seen (Flajolet and others, 2007).
    private static func estimate(_ ranks: [UInt8]) -> Double {
        let count = Double(ranks.count)
        let zeros = ranks.lazy.filter { $0 == 0 }.count
        let sum = ranks.reduce(0.0) { $0 + exp2(-Double($1)) }
        let raw = 0.7213 / (1 + 1.079 / count) * count * count / sum
        // Few clusters: the registers that saw none say more.
        return raw <= 2.5 * count && zeros > 0 ? count * log(count / Double(zeros)) : raw
    }
}
