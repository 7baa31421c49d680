import Synchronization
package import SystemLayer

/// The file in memory that gets a layer's bits before the changes are made.
///
/// It counts only while its header is there. The header is written last, and goes first when
/// anything fails.
package final class LiveBits: Sendable {
    private let directory: any TrackedDirectory
    private let name: String
    private let session: String
    private let file: any TrackedFile
    private let isCounted = Atomic<Bool>(false)

    /// Makes the file; it does not count before `begin`.
    package init(
        in directory: any TrackedDirectory, serial: UInt64, session: String
    ) throws(SystemFault) {
        self.directory = directory
        self.session = session
        name = Self.fileName(serial)
        file = try directory.create(name, reserving: 0)
    }

    /// The name of a layer's live file.
    static func fileName(_ serial: UInt64) -> String { "layer-\(serial).live" }

    /// Whether the file has every bit of its layer.
    var isThere: Bool { isCounted.load(ordering: .relaxed) }

    /// Writes all that the layer has so far; from then on the file counts.
    func begin(_ words: LazyWords, serial: UInt64, blockCount: Int) {
        do throws(SystemFault) {
            for page in words.usedPages {
                let first = page * LazyWords.pageWords
                let count = min(LazyWords.pageWords, words.count - first)
                try file.write(words, first: first, count: count, at: Self.position(first))
            }
            try file.write(LayerFile.liveHeader(session, serial, blockCount), at: 0)
            isCounted.store(true, ordering: .relaxed)
        } catch {
            _ = drop()
        }
    }

    private static func position(_ word: Int) -> UInt64 {
        UInt64(LayerFile.headerBytes) + UInt64(word) * 8
    }

    /// Home ring only: stores words that have changed; false when the file is wrong from now on and
    /// could not be dropped.
    func store(_ words: LazyWords, first: Int, count: Int) -> Bool {
        guard isCounted.load(ordering: .relaxed) else { return true }
        do throws(SystemFault) {
            try file.write(words, first: first, count: count, at: Self.position(first))
            return true
        } catch {
            return drop()
        }
    }

    /// The file counts no more; false when nothing could be done about it.
    func drop() -> Bool {
        isCounted.store(false, ordering: .relaxed)
        do throws(SystemFault) {
            try directory.remove(name)
            return true
        } catch {
            // Written over where it is: that needs no room.
            do throws(SystemFault) {
                try file.write([UInt8](repeating: 0, count: LayerFile.headerBytes), at: 0)
                return true
            } catch {
                return false
            }
        }
    }
}
