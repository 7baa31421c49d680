package import PointInTime

/// Zeroing and discarding requests of one disk, of which only some are at work at a time.
///
/// Such a request is many changes, one after the other. Between two of them it may step aside for
/// an instant that is being fixed; otherwise a begin waits for all of it.
struct ZeroingQueue: Sendable, Hashable {
    let limit: Int
    var atWork = 0
    /// For an instant to be over, or for others to end; first come, first served.
    var waiting: [ZeroingID] = []

    init(limit: Int) { self.limit = limit }
}

extension DiskChanges {
    /// Asks whether a zeroing request may begin; `.waits`: `.zero` follows.
    package mutating func admitZeroing(_ id: ZeroingID, _ ring: inout Places) -> Admission {
        guard zeroing.waiting.isEmpty, mayZero(ring) else {
            zeroing.waiting.append(id)
            return .waits
        }
        beginZeroing(&ring)
        return .go
    }

    /// Asks whether a request at work may take its next step; `.waits`: it has stepped aside for an
    /// instant, and `.zero` follows.
    package mutating func continueZeroing(_ id: ZeroingID, _ ring: inout Places) -> Admission {
        guard isHeld else { return .go }
        endZeroing(&ring)
        zeroingChangedAll()
        zeroing.waiting.append(id)
        return .waits
    }

    /// A request at work changes nothing more: an instant need not wait for it.
    ///
    /// `endZeroing` follows.
    package mutating func zeroingChangedAll() { inFlight -= 1 }

    /// The request has no operation in flight any more, its sync included: another may begin.
    package mutating func endZeroing(_ ring: inout Places) {
        zeroing.atWork -= 1
        ring.giveBack()
    }

    /// Whether requests wait that may begin as soon as there is a place.
    package var hasWaitingZeroing: Bool { !zeroing.waiting.isEmpty }

    private func mayZero(_ ring: Places) -> Bool {
        !isHeld && zeroing.atWork < zeroing.limit && !ring.isFull
    }

    private mutating func beginZeroing(_ ring: inout Places) {
        zeroing.atWork += 1
        ring.take()
        inFlight += 1
    }

    mutating func startZeroing(_ ring: inout Places) -> DiskAction? {
        guard !zeroing.waiting.isEmpty, mayZero(ring) else { return nil }
        beginZeroing(&ring)
        return .zero(zeroing.waiting.removeFirst())
    }
}
