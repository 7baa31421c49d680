/// Chooses who makes way when there is no room for a newcomer: of the peer that holds most places,
/// the place that has been quiet for the longest time.
///
/// Age alone would not tell: an honest client that its machine did not run for a moment is as old
/// as those that stall. Whoever floods has many places; who has one is safe beside it.
package struct Eviction<Place, Peer: Hashable> {
    private struct Candidate {
        let place: Place
        let peer: Peer
        let quietSince: UInt64
    }

    private var counts: [Peer: Int] = [:]
    private var candidates: [Candidate] = []

    package init() {}

    /// Counts a place of a peer in.
    ///
    /// `mayGo`: it may be chosen, as it has had time enough.
    package mutating func add(_ place: Place, of peer: Peer, quietSince: UInt64, mayGo: Bool) {
        counts[peer, default: 0] += 1
        guard mayGo else { return }
        candidates.append(Candidate(place: place, peer: peer, quietSince: quietSince))
    }

    /// The place that makes way; nil when none may be chosen, and while those of the peer with
    /// most places are too new: nobody else goes in their stead.
    package var choice: Place? {
        let most = counts.values.max()
        return candidates.filter { counts[$0.peer] == most }
            .min { $0.quietSince < $1.quietSince }?.place
    }
}
