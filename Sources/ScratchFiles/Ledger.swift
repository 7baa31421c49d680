package import PointInTime
package import Synchronization
package import SystemLayer
import Tables

/// A ledger and the memory that it lies in: `LedgerView` says what is promised of it.
package final class Ledger: Sendable {
    package let geometry: ClusterGeometry
    private let storage: SharedWordsStorage
    /// What the next process would go on with; nil: nothing.
    package let file: LedgerFile?
    /// What was in use when an earlier process left the ledger; nil for a new one.
    package let found: LedgerUse?
    /// Clusters preserved, zero ones included.
    package let preservedClusters = Atomic<UInt64>(0)
    /// Preserved clusters that are all zeros.
    package let zeroClusters = Atomic<UInt64>(0)

    /// A ledger on which nothing is preserved yet.
    ///
    /// `file` follows it from then on.
    package init(geometry: ClusterGeometry, file: LedgerFile? = nil) throws(SystemFault) {
        self.geometry = geometry
        self.file = file
        found = nil
        storage = try SharedWordsStorage(count: geometry.clusterCount + 1)
    }

    /// The ledger that an earlier process has left.
    ///
    /// Scratch has `slotLimit` slots; runs from so many words on stay where they are in the file.
    /// Throws when the words contradict each other or the scratch.
    package init(
        _ left: LedgerFile.Found, slotLimit: UInt32, mappedWordsMin: Int = Ledger.mappedWordsMin
    ) throws(LedgerFileFault) {
        geometry = ClusterGeometry(sizeBytes: left.facts.sizeBytes)
        do throws(SystemFault) {
            storage = try SharedWordsStorage(count: geometry.clusterCount + 1)
        } catch {
            throw .system(error)
        }
        file = left.file
        let reading = try left.file.reading(
            into: storage, clusterCount: geometry.clusterCount, mappedWordsMin: mappedWordsMin)
        let tally = try reading.run()
        let use = try LedgerUse(tally, slotLimit: slotLimit) { count throws(LedgerFileFault) in
            try reading.slots(count)
        }
        guard let use else { throw .implausible }
        found = use
        note(preserved: use.preserved, zero: use.zeros)
    }

    /// Shorter runs are copied: a process may have only so many mappings.
    package static let mappedWordsMin = 1 << 20

    /// The ledger as data path code sees it; valid while this object lives.
    package var view: LedgerView {
        LedgerView(geometry: geometry, words: storage.view, mirror: file?.mirror ?? .none)
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
