/// When a guest is called for the answers of its queue.
///
/// A guest that sleeps on a processor that has gone idle needs tens of microseconds to wake, as long
/// as twenty reads from the page cache take; elsewhere a few. Called at the end of the ring's turn, it
/// leaves the ring without work for that long; called by the first answer, where it wakes at once, it
/// comes for a few answers, sleeps again, and has to be called for the rest. So it is called when the
/// chains that are left take the ring as long as this guest has needed to come back of late.
struct GuestCalls {
    /// Longer than this no guest needs to wake, in nanoseconds: it had nothing to ask for.
    static let longestWake: UInt64 = 200_000
    /// What a guest is taken to need before anything is known of it, in nanoseconds.
    static let wakeAtFirst: UInt64 = 20_000
    /// Calls at the ends of turns, after which the next one is made early, to see how long the guest
    /// needs now.
    static let lateCallsMax = 64
    /// So many turns may end with a call that is owed and not due.
    static let turnsOwedMax = 2
    /// Chains of a turn that say what one takes.
    static let chainsOfSample = 4

    /// The guest wants a call for answers that it can see.
    private(set) var isOwed = false
    /// The early call whose effect is not known yet: when it was, and the queue's available index
    /// then.
    private var early: (time: UInt64, index: UInt16)?
    /// From a call to new chains, in nanoseconds: a mean of the last calls.
    private(set) var wake = wakeAtFirst
    /// What a chain takes of a turn, in nanoseconds: a mean of the last turns; 0: not known.
    private(set) var chain: UInt64 = 0

    private var lateCalls = 0
    private var turnsOwed = 0

    /// The guest can see more answers.
    mutating func show(wantsCall: Bool) { if wantsCall { isOwed = true } }

    /// Whether to call in the midst of the turn, with so many chains left in all queues; not while it
    /// is not known what the last early call has done.
    func isDueEarly(chainsLeft: Int) -> Bool {
        guard isOwed, early == nil, chainsLeft > 0 else { return false }
        return UInt64(chainsLeft) * chain <= wake || lateCalls >= Self.lateCallsMax
    }

    /// Whether a call can wait for the next turn, which follows at once.
    mutating func canWait(chainsLeft: Int) -> Bool {
        guard chainsLeft > 0, turnsOwed < Self.turnsOwedMax, !isDueEarly(chainsLeft: chainsLeft)
        else { return false }
        turnsOwed += 1
        return true
    }

    /// Whether `look` has something to find out.
    var isWatching: Bool { early != nil }

    /// It was called; `now` and its available index when this was in the midst of a turn.
    mutating func called(early now: UInt64? = nil, index: UInt16 = 0) {
        isOwed = false
        turnsOwed = 0
        if let now { early = (now, index) }
        lateCalls = now == nil ? min(lateCalls + 1, Self.lateCallsMax) : 0
    }

    /// The queue's available index as it is now.
    mutating func look(_ index: UInt16, now: UInt64) {
        guard let early else { return }
        let passed = now &- early.time
        if passed > Self.longestWake {
            self.early = nil
        } else if index != early.index {
            wake = Self.mean(wake, passed)
            self.early = nil
        }
    }

    /// A turn has taken so many chains of the queue, and begun them, in so many nanoseconds.
    mutating func took(_ chains: Int, _ nanoseconds: UInt64) {
        guard chains >= Self.chainsOfSample else { return }
        let each = min(nanoseconds / UInt64(chains), Self.longestWake)
        chain = chain == 0 ? each : Self.mean(chain, each)
    }

    private static func mean(_ old: UInt64, _ new: UInt64) -> UInt64 { (old * 7 + new) / 8 }
}
