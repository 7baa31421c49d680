/// Where a disk's large folios are split before a small write, because writes to them are dear.
///
/// What a small write into the page cache takes depends on the folio that it goes to: where the
/// kernel has a record for each block of a folio, it looks at all of them each time, at 512 for a
/// folio of 2 MiB. To a single page a write takes a third to a tenth of that. Files get large folios
/// by being written or read in large pieces, so an image that was copied to its place has them.
///
/// Splitting takes as long as two or three writes to the folio, and a dirty folio is not split. So
/// where a disk's writes are dear, the first small write to each region has its folio split. A
/// region whose writes are dear all the same is tried again, later each time; where splitting does
/// not help, it is left alone for a while.
struct FolioSplits {
    /// Regions begin at multiples of so many bytes; the kernel's largest folio has several.
    static let regionBytes: UInt64 = 512 << 10
    /// Writes of more bytes take their time anyway.
    static let bytesMax = 16 << 10
    /// A write that takes longer went to a large folio, or else the next ones tell, in nanoseconds.
    static let dearNanoseconds: UInt64 = 12_000
    /// What makes a disk's writes dear: one in four is.
    static let dearWeight = 4
    static let dearnessToSplit = 8
    static let dearnessMax = 64
    /// How long a region is left alone that was tried in vain, at first and at most, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 250_000_000
    static let pauseNanosecondsMax: UInt64 = 64_000_000_000
    /// So many more dear writes than others to regions that were tried: splitting does not help.
    static let failuresMax = 256
    /// A split that takes longer was made to wait, in nanoseconds.
    static let slowNanoseconds: UInt64 = 2_000_000
    /// For how long nothing is split then, in nanoseconds.
    static let restNanoseconds: UInt64 = 60_000_000_000
    /// Regions that are remembered, a power of two.
    static let placesMax = 2048

    private struct Place {
        /// Its number, and 1; 0: none.
        var region: UInt64 = 0
        var triedAt: UInt64 = 0
        var pause: UInt64 = 0
        /// The last write after the split was dear.
        var isDear = false
    }

    /// By the lower bits of the region's number; empty while no write was dear.
    private var places: [Place] = []
    /// How dear writes are to regions that were not tried.
    private var dearness = 0
    private var failures = 0
    private var restsUntil: UInt64 = 0

    /// Whether the folio of a small write at an offset is to be split before it.
    mutating func wantsSplit(at offset: UInt64, now: UInt64) -> Bool {
        guard dearness >= Self.dearnessToSplit, now >= restsUntil else { return false }
        let (region, index) = place(offset)
        if places[index].region != region {
            places[index] = Place(region: region, triedAt: now, pause: Self.pauseNanoseconds)
            return true
        }
        guard places[index].isDear, now >= places[index].triedAt + places[index].pause else {
            return false
        }
        places[index].triedAt = now
        places[index].pause = min(places[index].pause * 2, Self.pauseNanosecondsMax)
        return true
    }

    /// A folio was split, or it was tried to, in so many nanoseconds.
    mutating func split(took nanoseconds: UInt64, now: UInt64) {
        if nanoseconds > Self.slowNanoseconds { rest(now) }
    }

    /// A small write at an offset has taken so many nanoseconds.
    mutating func wrote(at offset: UInt64, took nanoseconds: UInt64, now: UInt64) {
        let isDear = nanoseconds > Self.dearNanoseconds
        // The usual case.
        if !isDear, places.isEmpty { return }
        if places.isEmpty { places = Array(repeating: Place(), count: Self.placesMax) }
        let (region, index) = place(offset)
        guard places[index].region == region else {
            dearness =
                isDear ? min(dearness + Self.dearWeight, Self.dearnessMax) : max(dearness - 1, 0)
            return
        }
        places[index].isDear = isDear
        if !isDear { places[index].pause = Self.pauseNanoseconds }
        failures = isDear ? failures + 1 : max(failures - 1, 0)
        if failures >= Self.failuresMax { rest(now) }
    }

    private mutating func rest(_ now: UInt64) {
        (dearness, failures) = (0, 0)
        restsUntil = now + Self.restNanoseconds
    }

    private func place(_ offset: UInt64) -> (region: UInt64, index: Int) {
        let number = offset / Self.regionBytes
        return (number + 1, Int(number & UInt64(Self.placesMax - 1)))
    }
}
