/// When a guest is called for answers of its queue while the ring goes on with others.
///
/// A guest that sleeps on a processor that has gone idle wakes within tens of microseconds, as long
/// as ten requests take: called by the first answer, it goes on beside the ring. Where it wakes at
/// once a call in the midst of a turn only cuts short what it would have slept, so there it is
/// called at the turn's end, and an early call is tried again now and then.
struct GuestCalls {
    /// A guest that has put new chains into its queue by then wakes at once, in nanoseconds.
    static let quickNanoseconds: UInt64 = 20_000
    /// Answers between two early calls of a turn.
    static let answersBetween = 4
    /// Turns without an early call after guests that woke at once, first and at most.
    static let pauseTurns = (first: 4, most: 64)

    /// The guest wants a call for answers that it can see.
    private(set) var isOwed = false
    /// The early call whose effect is not known yet: when it was, and the queue's available index
    /// then.
    private var early: (time: UInt64, index: UInt16)?
    private var hasCalled = false
    private var shown = 0
    private var pause = 0
    private var turnsLeft = 0

    /// A turn of the queue begins.
    mutating func beginTurn() {
        hasCalled = false
        if turnsLeft > 0 { turnsLeft -= 1 }
    }

    /// The guest can see so many more answers.
    mutating func show(_ count: Int, wantsCall: Bool) {
        shown += count
        if wantsCall { isOwed = true }
    }

    /// Whether to call in the midst of the turn.
    var isDueEarly: Bool {
        isOwed && turnsLeft == 0 && early == nil && (!hasCalled || shown > Self.answersBetween)
    }

    /// Whether `look` has something to find out.
    var isWatching: Bool { early != nil }

    /// It was called; `now` and its available index when this was in the midst of a turn.
    mutating func called(early now: UInt64? = nil, index: UInt16 = 0) {
        isOwed = false
        hasCalled = true
        shown = 0
        if let now { early = (now, index) }
    }

    /// The queue's available index as it is now.
    mutating func look(_ index: UInt16, now: UInt64) {
        guard let early else { return }
        let isLate = now &- early.time >= Self.quickNanoseconds
        guard isLate || index != early.index else { return }
        self.early = nil
        pause = isLate ? 0 : min(max(pause * 2, Self.pauseTurns.first), Self.pauseTurns.most)
        turnsLeft = pause
    }
}
