import Core

/// One I/O in flight.
///
/// It takes effect part by part, and is answered later: everything else may happen in between.
final class Operation {
    /// What has become of it by now.
    enum Fate: Hashable {
        case answered
        /// Not answered until its place is healed.
        case hangs
        case hangsForEver
    }

    let place: Place
    let startedAt: UInt64
    var fate = Fate.answered
    /// Parts that are still to take effect.
    var partsLeft: Int
    let parts: Int
    /// What it reports whatever its effect said.
    var errno: Int32?
    /// What was written is going to be lost.
    var isLost = false
    /// How often it is passed over yet.
    var patience = 0
    /// The process has gone, or nobody waits any more.
    var isForgotten = false
    /// Does part `index`; an errno when it failed.
    private var effect: (_ part: Int, _ isLost: Bool) -> Int32?
    private var end: (Int32?) -> Void

    init(
        _ place: Place, parts: Int, now: UInt64,
        effect: @escaping (_ part: Int, _ isLost: Bool) -> Int32?,
        end: @escaping (Int32?) -> Void
    ) {
        self.place = place
        self.parts = parts
        startedAt = now
        partsLeft = parts
        self.effect = effect
        self.end = end
    }

    /// Takes effect by one more part; false when there is none left.
    func takeEffect() -> Bool {
        guard partsLeft > 0 else { return false }
        partsLeft -= 1
        if let failure = effect(parts - partsLeft - 1, isLost), errno == nil { errno = failure }
        return true
    }

    func answer() {
        let end = end
        dissolve()
        if !isForgotten { end(errno) }
    }

    /// Nothing more comes of it; whoever waits for it holds it, and it would hold them.
    func dissolve() {
        effect = { _, _ in nil }
        end = { _ in }
    }
}

/// Work that production code hands to a thread of its own.
final class ThreadCall {
    let disk: Int
    let name: String
    let body: () -> Void
    /// The serial of the layer that it saves, which no other may do at the same time.
    let saves: UInt64?

    init(_ name: String, disk: Int, saves: UInt64? = nil, _ body: @escaping () -> Void) {
        self.name = name
        self.disk = disk
        self.saves = saves
        self.body = body
    }
}

/// A ring: the messages for its disks, in their order.
final class SimulatedRing {
    var messages: [() -> Void] = []
    var places: Places

    init(zeroingPlaces: Int) { places = Places(limit: zeroingPlaces) }
}
