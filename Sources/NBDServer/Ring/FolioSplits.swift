/// Where a disk's large folios are split before a small write, because writes to them are dear.
///
/// What a small write into the page cache takes depends on the folio that it goes to: where the
/// kernel has a record for each block of a folio, it looks at all of them each time, at 512 for a
/// folio of 2 MiB. To a single page a write takes a third to a tenth of that. Files get large folios
/// by being written or read in large pieces, so an image that was copied to its place has them.
///
/// Splitting takes as long as two or three writes to the folio, and a dirty folio is not split. So
/// where a disk's writes are dear, the first small write to each region has its folio split, for as
/// long as there is something to split. Where writes to such regions are dear all the same, all
/// regions are tried again, later each time.
struct FolioSplits {
    /// Regions begin at multiples of so many bytes; the kernel's largest folio has several.
    static let regionBytes: UInt64 = 512 << 10
    /// Writes of more bytes take their time anyway.
    static let bytesMax = 16 << 10
    /// A write that takes longer went to a large folio, or else the next ones tell, in nanoseconds.
    static let dearNanoseconds: UInt64 = 12_000
    /// A split that takes longer has split something, in nanoseconds.
    static let realNanoseconds: UInt64 = 20_000
    /// What makes a disk's writes dear: one in four is.
    static let dearWeight = 4
    static let dearnessToSplit = 8
    static let dearnessMax = 64
    /// So many more dear writes than others to regions that were tried: they are to be tried again.
    static let failuresMax = 64
    /// So long after the last time, at first and at most, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 250_000_000
    static let pauseNanosecondsMax: UInt64 = 64_000_000_000
    /// A split that takes longer was made to wait, in nanoseconds.
    static let slowNanoseconds: UInt64 = 10_000_000
    /// Nothing is split then for so many times as long, and at most for so many nanoseconds: what a
    /// ring loses by it is a hundredth of its time.
    static let slowFactor: UInt64 = 100
    static let slowRestNanosecondsMax: UInt64 = 60_000_000_000
    /// Regions that are told apart, a power of two: those of 2 TiB.
    static let regionsMax: UInt64 = 1 << 22

    /// A bit for each region that was tried; empty while no write was dear.
    private var tried: [UInt64] = []
    private let regions: UInt64
    /// How dear writes are to regions that were not tried, and how much there was to split.
    private var dearness = 0
    private var failures = 0
    private var triedAgainAt: UInt64 = 0
    private var pause = pauseNanoseconds
    private var restsUntil: UInt64 = 0

    /// Of a disk of so many bytes.
    init(sizeBytes: UInt64) {
        var regions: UInt64 = 64
        while regions < Self.regionsMax, regions * Self.regionBytes < sizeBytes { regions *= 2 }
        self.regions = regions
    }

    /// Whether the folio of a small write at an offset is to be split before it.
    mutating func wantsSplit(at offset: UInt64, now: UInt64) -> Bool {
        guard dearness >= Self.dearnessToSplit, now >= restsUntil else { return false }
        let (word, bit) = place(offset)
        guard tried[word] & bit == 0 else { return false }
        tried[word] |= bit
        return true
    }

    /// It was tried, in so many nanoseconds; whether something was split.
    mutating func split(took nanoseconds: UInt64, now: UInt64) -> Bool {
        if nanoseconds > Self.slowNanoseconds {
            let longest = Self.slowRestNanosecondsMax
            restsUntil = now + min(min(nanoseconds, longest) * Self.slowFactor, longest)
        }
        let isReal = nanoseconds > Self.realNanoseconds
        weigh(isDear: isReal)
        return isReal
    }

    /// A small write at an offset has taken so many nanoseconds.
    mutating func wrote(at offset: UInt64, took nanoseconds: UInt64, now: UInt64) {
        let isDear = nanoseconds > Self.dearNanoseconds
        // The usual case.
        if !isDear, tried.isEmpty { return }
        if tried.isEmpty { tried = Array(repeating: 0, count: Int(regions / 64)) }
        let (word, bit) = place(offset)
        guard tried[word] & bit != 0 else { return weigh(isDear: isDear) }
        failures = isDear ? failures + 1 : max(failures - 1, 0)
        guard failures >= Self.failuresMax else { return }
        failures = 0
        guard now >= triedAgainAt + pause else { return }
        // Soon after the last time it has not helped much.
        let isSoon = now < triedAgainAt + pause * 4
        pause = isSoon ? min(pause * 2, Self.pauseNanosecondsMax) : Self.pauseNanoseconds
        triedAgainAt = now
        for word in tried.indices { tried[word] = 0 }
    }

    private mutating func weigh(isDear: Bool) {
        dearness = isDear ? min(dearness + Self.dearWeight, Self.dearnessMax) : max(dearness - 1, 0)
    }

    private func place(_ offset: UInt64) -> (word: Int, bit: UInt64) {
        let region = offset / Self.regionBytes & (regions - 1)
        return (Int(region / 64), 1 << (region % 64))
    }
}
