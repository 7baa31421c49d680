/// How long a ring looks for the next completion before it sleeps.
///
/// A client that sends one request at a time and waits for its answer asks again within some tens
/// of microseconds; to sleep that long and be woken costs more than to look. Looking takes a
/// processor, so it is done only while it pays: after a run of short sleeps, each ended by a single
/// completion, and until it has failed a few times in a row.
struct BriefWait {
    /// What a ring has nothing to do without.
    enum Kind: Int, CaseIterable {
        /// A client's next request.
        case client
        /// The next chains of guests that have had many.
        case busyGuests
        /// A disk's answers for guests that poll.
        case disk
    }

    /// Short sleeps in a row after which looking begins.
    static let shortSleepsToBegin = 32
    /// Looks in vain, more than there were others, after which it ends.
    static let missesToEnd = 4

    /// The longest look, in nanoseconds.
    let longestLook: UInt64
    /// The longest sleep that a look would have spared, in nanoseconds: to be woken is a part of
    /// it, and takes as long again where processors go idle.
    let longestSleep: UInt64
    private let countsCrowds: Bool
    private var shortSleeps = 0
    private var misses = 0

    init(_ kind: Kind) {
        switch kind {
        case .client: (longestLook, longestSleep) = (75_000, 150_000)
        // A look pays for more requests.
        case .busyGuests: (longestLook, longestSleep) = (100_000, 200_000)
        // An interrupt ends the sleep.
        case .disk: (longestLook, longestSleep) = (100_000, 100_000)
        }
        countsCrowds = kind != .client
    }

    /// How long to look now, in nanoseconds; 0: not at all.
    var nanoseconds: UInt64 { shortSleeps >= Self.shortSleepsToBegin ? longestLook : 0 }

    /// The ring has slept, and was woken to this many completions.
    mutating func slept(_ nanoseconds: UInt64, completions: Int) {
        guard nanoseconds <= longestSleep, completions == 1 || countsCrowds else {
            if shortSleeps < Self.shortSleepsToBegin { shortSleeps = 0 }
            return
        }
        shortSleeps = min(shortSleeps + 1, Self.shortSleepsToBegin)
    }

    /// A look has found completions.
    mutating func found(completions: Int) {
        // Several at once are a crowd that keeps the ring awake by itself.
        if completions == 1 || countsCrowds { misses = max(misses - 1, 0) } else { missed() }
    }

    /// A look has found nothing.
    mutating func missed() {
        misses += 1
        guard misses >= Self.missesToEnd else { return }
        misses = 0
        shortSleeps = 0
    }
}

/// Whether guests have had so many requests of late that a longer look costs each of them little.
struct GuestRate {
    static let windowNanoseconds: UInt64 = 1_000_000
    /// In a window.
    static let requestsOfBusy = 40

    private(set) var isBusy = false
    private var begun: UInt64 = 0
    private var requests = 0

    /// A request was taken.
    mutating func note() { requests &+= 1 }

    /// Judges the window that has passed by now.
    mutating func judge(_ now: UInt64) {
        let length = now &- begun
        guard length >= Self.windowNanoseconds else { return }
        let inWindow = UInt64(clamping: requests) &* Self.windowNanoseconds / length
        isBusy = inWindow >= Self.requestsOfBusy
        begun = now
        requests = 0
    }
}
