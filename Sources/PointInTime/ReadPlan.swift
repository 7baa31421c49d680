/// One step of a backup read: neighbouring bytes that come from one place.
package struct ReadStep: Sendable, Hashable {
    /// Where the bytes come from.
    ///
    /// For `slot`, the slot of the step's first cluster; the others follow it.
    package let place: ClusterPlace
    /// First byte on the disk.
    package let offset: UInt64
    package let count: Int

    package init(place: ClusterPlace, offset: UInt64, count: Int) {
        self.place = place
        self.offset = offset
        self.count = count
    }
}

extension LedgerView {
    /// The longest step at `offset`, within `end`, whose bytes come from one place.
    ///
    /// Clusters in neighbouring slots make one step. What the step says about `source` can be
    /// overtaken at any moment: after the read ask `firstPreserved`. Where clients may release
    /// clusters, so can what it says about a slot: ask `firstReleased`.
    package func step(from offset: UInt64, to end: UInt64) -> ReadStep {
        precondition(offset < end && end <= geometry.sizeBytes)
        let first = ClusterGeometry.cluster(of: offset)
        let last = ClusterGeometry.cluster(of: end - 1)
        let place = place(of: first)
        var next = first + 1
        while next <= last, continues(place, at: next, after: next - first) { next += 1 }
        let stepEnd = min(ClusterGeometry.start(of: next), end)
        return ReadStep(place: place, offset: offset, count: Int(stepEnd - offset))
    }

    private func continues(_ place: ClusterPlace, at cluster: Int, after distance: Int) -> Bool {
        switch (place, self.place(of: cluster)) {
        case (.source, .source), (.zero, .zero), (.released, .released): true
        case (.slot(let first), .slot(let here)): Int(here) == Int(first) + distance
        default: false
        }
    }

    /// The byte of scratch at which a byte of the disk lies, when its cluster is in the given slot.
    package static func scratchPosition(of offset: UInt64, firstSlot slot: UInt32) -> UInt64 {
        (UInt64(slot) << ClusterGeometry.shift)
            | (offset & UInt64(ClusterGeometry.clusterBytes - 1))
    }
}
