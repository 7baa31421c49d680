import Synchronization
package import Tables

/// Where the point in time's content of one cluster is.
package enum ClusterPlace: Sendable, Hashable {
    /// Still in the source, unchanged since the instant.
    case source
    /// All zeros at the instant; costs no scratch.
    case zero
    /// In this slot of scratch.
    case slot(UInt32)
    /// Nowhere: the job's client has released it, and nothing is kept for it any more.
    case released
}

/// The record of one disk in one job: which clusters are preserved, and where.
///
/// Invariants, on which promise P1 rests:
/// - One writer, the disk's home ring; any number of readers on any thread.
/// - A cluster goes from `source` to `zero` or `slot` once and does not change again, but to
///   `released`, from any place; that is final.
/// - A slot is written again only after the word of the cluster that was in it says `released`, so
///   a read of scratch that completed while the word still named the slot (looked up *after* the
///   read) saw that cluster.
/// - Before a cluster becomes `slot(n)` its old content has been written to slot n completely.
/// - The home ring submits a guest write only after every cluster it touches has left `source`, so
///   a read of the source that completed while the cluster was still `source` (looked up *after*
///   the read) saw the point in time.
/// - Once the ledger is closed (job broken or ended) it never opens again, and it is closed before
///   the home ring lets a write pass that was not preserved.
///
/// One 32-bit word a cluster holds all of it, so a reader sees place and slot with one load: 0 =
/// source, 1 = zero, n + 2 = slot n, all ones = released. The word after the last cluster is not
/// zero when the ledger is closed.
///
/// A plain view, whose copies cost nothing; the holder of the memory behind it also holds (or is
/// outlived by) what owns it.
package struct LedgerView: Sendable, BitwiseCopyable {
    package let geometry: ClusterGeometry
    private let words: SharedWords
    private let mirror: WordsMirror

    /// Slots that a word can name.
    package static let slotsMax = UInt32.max - 2
    private static let releasedWord = UInt32.max

    /// A view of words, one more than there are clusters, all zero when nothing is preserved yet.
    package init(geometry: ClusterGeometry, words: SharedWords, mirror: WordsMirror = .none) {
        self.geometry = geometry
        self.words = words
        self.mirror = mirror
    }

    /// Where a cluster's content is now.
    package func place(of cluster: Int) -> ClusterPlace {
        let word = words.load(cluster)
        switch word {
        case 0: return .source
        case 1: return .zero
        case Self.releasedWord: return .released
        default: return .slot(word - 2)
        }
    }

    /// Whether nothing has to be copied for the cluster any more: it is preserved, or released.
    package func isPreserved(_ cluster: Int) -> Bool { words.load(cluster) != 0 }

    /// Whether the job is broken or ended, so that nothing read under it may be handed out.
    package var isClosed: Bool { words.load(geometry.clusterCount) != 0 }

    /// For a reader whose read of the source has just completed: the first cluster of the run that
    /// is preserved by now.
    ///
    /// Everything before it was read as the point in time had it; nil means all of it was.
    package func firstPreserved(in clusters: Range<Int>) -> Int? {
        // The loads below must not be taken before the bytes that they judge.
        atomicMemoryFence(ordering: .acquiring)
        for cluster in clusters where words.load(cluster) != 0 { return cluster }
        return nil
    }

    /// For a reader whose read of scratch has just completed: the first cluster of the run that is
    /// released by now, so that its slot may hold something else.
    ///
    /// Everything before it is as it was preserved; nil means all of it is.
    package func firstReleased(in clusters: Range<Int>) -> Int? {
        // The loads below must not be taken before the bytes that they judge.
        atomicMemoryFence(ordering: .acquiring)
        for cluster in clusters where words.load(cluster) == Self.releasedWord { return cluster }
        return nil
    }

    /// Home ring only: the cluster is released; returns where it was.
    ///
    /// Its slot is free for others after the next `settle`.
    package func release(_ cluster: Int) -> ClusterPlace {
        let place = place(of: cluster)
        words.store(Self.releasedWord, at: cluster)
        mirror.note(cluster)
        return place
    }

    /// Home ring only: records that a cluster's content is in scratch, or is all zeros.
    package func publish(_ cluster: Int, _ place: ClusterPlace) {
        precondition(words.load(cluster) == 0, "a preserved cluster never changes")
        switch place {
        case .source, .released:
            preconditionFailure("a cluster is never given back to the source")
        case .zero: words.store(1, at: cluster)
        case .slot(let slot):
            precondition(slot < Self.slotsMax, "slot number out of range")
            words.store(slot + 2, at: cluster)
        }
        mirror.note(cluster)
    }

    /// Nothing read under this job may be handed out from now on, and no other process goes on with
    /// it.
    package func close() {
        words.store(1, at: geometry.clusterCount)
        // Every time: another thread that has stored the word may not have come this far.
        mirror.close()
    }

    /// Home ring only: everything published before is visible to readers, and there for the next
    /// process, before any write submitted after.
    package func settle() {
        mirror.flush(words)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
    }
}
