/// Whether a small buffered write is made on the ring's own thread.
///
/// A write into the page cache takes a microsecond or two; handed to a kernel worker, as file
/// systems without non-blocking buffered writes have it, it takes ten times that. But the kernel
/// may make the writer wait, when too much is dirty for example, and a ring that waits serves
/// nobody. So one slow write sends the disk's writes to the kernel's workers for a while, longer
/// each time it happens again: at most a small share of a ring's time is ever lost. Where writes
/// are merely expensive, as in large folios, workers share the load with the ring: then only now
/// and then a few are made inline, to see whether that has changed. A write that is all the ring has to
/// do leaves nothing to share: a worker would only have to be woken for it, and the ring again.
struct InlineWrites {
    /// Longest write that is made inline, in bytes.
    static let bytesMax = 64 << 10
    /// The same of a write that is all the ring has to do, in bytes.
    static let bytesMaxAlone = 16 << 10
    /// A write that takes longer was made to wait, in nanoseconds.
    static let slowNanoseconds: UInt64 = 2_000_000
    /// How long inline writes pause after the first slow one, and at most, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 1_000_000_000
    static let pauseNanosecondsMax: UInt64 = 64_000_000_000
    /// Writes in a row that are quick before a slow one counts as the first again.
    static let quickWritesToForget = 100_000

    /// Above this average the kernel's workers do better, in nanoseconds.
    static let expensiveNanoseconds: UInt64 = 20_000
    /// How long inline writes pause when they are expensive, in nanoseconds.
    static let expensivePauseNanoseconds: UInt64 = 250_000_000
    /// Above this average a worker is woken for a lone write as well, in nanoseconds: another
    /// machine's request may come at any time.
    static let expensiveAloneNanoseconds: UInt64 = 100_000
    /// Writes that an average looks back on.
    private static let averaged: UInt64 = 16

    private var average: UInt64 = 0
    /// The same, which nothing sets back.
    private var longAverage: UInt64 = 0
    private var slowUntil: UInt64 = 0
    private var expensiveUntil: UInt64 = 0
    private var nextPause = pauseNanoseconds
    private var quickWrites = 0

    /// Whether a write may be made inline at `now`, in nanoseconds.
    ///
    /// Only whole pages (`isWholePages`): a part of one may have to be read from the device first.
    func allows(bytes: Int, isWholePages: Bool, now: UInt64) -> Bool {
        bytes <= Self.bytesMax && isWholePages && now >= max(slowUntil, expensiveUntil)
    }

    /// The same for a write that is all the ring has to do.
    func allowsAlone(bytes: Int, isWholePages: Bool, now: UInt64) -> Bool {
        bytes <= Self.bytesMaxAlone && isWholePages && now >= slowUntil
            && longAverage <= Self.expensiveAloneNanoseconds
    }

    /// Notes how long an inline write took that ended at `now`.
    mutating func took(_ nanoseconds: UInt64, now: UInt64) {
        if nanoseconds <= Self.slowNanoseconds {
            quickWrites += 1
            if quickWrites == Self.quickWritesToForget { nextPause = Self.pauseNanoseconds }
            weigh(nanoseconds, now: now)
            return
        }
        quickWrites = 0
        slowUntil = now + nextPause
        nextPause = min(nextPause * 2, Self.pauseNanosecondsMax)
    }

    private mutating func weigh(_ nanoseconds: UInt64, now: UInt64) {
        average = (average * (Self.averaged - 1) + nanoseconds) / Self.averaged
        longAverage = (longAverage * (Self.averaged - 1) + nanoseconds) / Self.averaged
        guard average > Self.expensiveNanoseconds else { return }
        expensiveUntil = now + Self.expensivePauseNanoseconds
        // The next few decide again.
        average = Self.expensiveNanoseconds / 2
    }
}
