/// How long a ring looks for the next completion before it sleeps.
///
/// A client that sends one request at a time and waits for its answer asks again within some tens
/// of microseconds; to sleep that long and be woken costs more than to look. Looking takes a
/// processor, so it is done only while it pays: after a run of short sleeps, each ended by a single
/// completion, and until it has failed a few times in a row.
struct BriefWait {
    /// The longest look, and the longest sleep that it would have spared, in nanoseconds.
    static let longestNanoseconds: UInt64 = 50_000
    /// The same where a disk is waited for: a sleep that its interrupt ends takes twice as long.
    static let longestForDisks: UInt64 = 100_000
    /// Short sleeps in a row after which looking begins.
    static let shortSleepsToBegin = 32
    /// Looks in vain, more than there were others, after which it ends.
    static let missesToEnd = 4

    private let longest: UInt64
    private var shortSleeps = 0
    private var misses = 0

    init(longest: UInt64 = Self.longestNanoseconds) { self.longest = longest }

    /// How long to look now, in nanoseconds; 0: not at all.
    var nanoseconds: UInt64 { shortSleeps >= Self.shortSleepsToBegin ? longest : 0 }

    /// The ring has slept, and was woken to this many completions.
    mutating func slept(_ nanoseconds: UInt64, completions: Int) {
        guard nanoseconds <= longest, completions == 1 else {
            if shortSleeps < Self.shortSleepsToBegin { shortSleeps = 0 }
            return
        }
        shortSleeps = min(shortSleeps + 1, Self.shortSleepsToBegin)
    }

    /// A look has found completions.
    mutating func found(completions: Int) {
        // Several at once are a crowd that keeps the ring awake by itself.
        if completions == 1 { misses = max(misses - 1, 0) } else { missed() }
    }

    /// A look has found nothing.
    mutating func missed() {
        misses += 1
        guard misses >= Self.missesToEnd else { return }
        misses = 0
        shortSleeps = 0
    }
}
