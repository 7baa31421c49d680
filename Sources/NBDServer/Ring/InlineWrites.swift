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
    /// A write that takes longer was made to wait, in nanoseconds; a thread that has lost its
    /// processor has it again by then.
    static let slowNanoseconds: UInt64 = 10_000_000
    /// How long inline writes pause after the first slow one, and at most, in nanoseconds.
    static let pauseNanoseconds: UInt64 = 1_000_000_000
    static let pauseNanosecondsMax: UInt64 = 64_000_000_000
    /// Writes in a row that are quick before a slow one counts as the first again.
    static let quickWritesToForget = 100_000

    /// Above this average the kernel's workers do better, in nanoseconds.
    static let expensiveNanoseconds: UInt64 = 20_000
    /// Above this average of all their time writes are not even made inline where the ring has
    /// nothing else to do, in nanoseconds: another machine's request may come at any time.
    static let expensiveAloneNanoseconds: UInt64 = 100_000
    /// How long inline writes pause when they are expensive, in nanoseconds.
    static let expensivePauseNanoseconds: UInt64 = 250_000_000

    /// What a write usually takes.
    ///
    /// One write counts three times the bound at most: a thread that has lost its processor once
    /// does not make writes expensive.
    private var usual = Mean(of: 16)
    /// What writes take of the ring's time.
    private var whole = Mean(of: 64)
    private var slowUntil: UInt64 = 0
    private var expensiveUntil: UInt64 = 0
    private var expensiveAloneUntil: UInt64 = 0
    private var nextPause = pauseNanoseconds
    private var quickWrites = 0

    /// Whether a write may be made inline at `now`, in nanoseconds.
    ///
    /// Only whole pages (`isWholePages`): a part of one may have to be read from the device first.
    func allows(bytes: Int, isWholePages: Bool, now: UInt64) -> Bool {
        bytes <= Self.bytesMax && isWholePages
            && now >= max(slowUntil, expensiveUntil, expensiveAloneUntil)
    }

    /// The same for a write that is all the ring has to do.
    func allowsAlone(bytes: Int, isWholePages: Bool, now: UInt64) -> Bool {
        bytes <= Self.bytesMaxAlone && isWholePages
            && now >= max(slowUntil, expensiveAloneUntil)
    }

    /// Whether a write was made to wait of late.
    func areSlow(now: UInt64) -> Bool { now < slowUntil }

    /// Writes that were expensive may not be any more: the next ones tell.
    mutating func lookAgain() {
        expensiveUntil = 0
        expensiveAloneUntil = 0
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
        let until = now + Self.expensivePauseNanoseconds
        let expensive = Self.expensiveNanoseconds
        if usual.exceeds(expensive, with: min(nanoseconds, expensive * 3)) {
            expensiveUntil = until
        }
        if whole.exceeds(Self.expensiveAloneNanoseconds, with: nanoseconds) {
            expensiveAloneUntil = until
        }
    }

    /// A mean that looks back on so many writes, in nanoseconds.
    private struct Mean {
        private let count: UInt64
        private var value: UInt64 = 0

        init(of count: UInt64) {
            self.count = count
        }

        /// Takes one more in, and says whether the mean is above the bound then.
        ///
        /// Where it is, it is set to half of the bound: the next few decide again.
        mutating func exceeds(_ bound: UInt64, with nanoseconds: UInt64) -> Bool {
            value = (value * (count - 1) + nanoseconds) / count
            guard value > bound else { return false }
            value = bound / 2
            return true
        }
    }
}
