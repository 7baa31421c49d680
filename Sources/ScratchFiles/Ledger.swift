package import PointInTime
package import Synchronization
package import SystemLayer
import Tables

/// A ledger and the memory that it lies in: `LedgerView` says what is promised of it.
package final class Ledger: Sendable {
    package let geometry: ClusterGeometry
    private let storage: SharedWordsStorage
    /// Clusters preserved, zero ones included.
    package let preservedClusters = Atomic<UInt64>(0)
    /// Preserved clusters that are all zeros.
    package let zeroClusters = Atomic<UInt64>(0)

    /// A ledger on which nothing is preserved yet.
    package init(geometry: ClusterGeometry) throws(SystemFault) {
        self.geometry = geometry
        storage = try SharedWordsStorage(count: geometry.clusterCount + 1)
    }

    /// The ledger as data path code sees it; valid while this object lives.
    package var view: LedgerView {
        LedgerView(geometry: geometry, words: storage.view)
    }

    /// The words as they are now; with `rewind`, for walks that try every order of events from one
    /// state.
    package var words: [UInt32] {
        (0..<storage.view.count).map { storage.view.load($0) }
    }

    /// Puts back words taken earlier.
    ///
    /// Breaks every promise of a ledger in use: no reader and no writer may be left.
    package func rewind(to words: [UInt32]) {
        precondition(words.count == storage.view.count)
        for (index, word) in words.enumerated() { storage.view.store(word, at: index) }
    }

    /// Keeps the home ring's figures for others to read.
    package func note(preserved: Int, zero: Int) {
        // Relaxed: figures for people, nothing is decided by them.
        preservedClusters.store(UInt64(preserved), ordering: .relaxed)
        zeroClusters.store(UInt64(zero), ordering: .relaxed)
    }
}
