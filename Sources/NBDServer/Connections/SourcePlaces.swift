import Disk
import Synchronization

/// On how many file systems and devices the server's disks lie.
///
/// A call of a ring's own thread to a disk's file may never return: its file system may be frozen, or its
/// device gone. Then everybody on that ring waits, and everybody who connects. So rings make such
/// calls only while all disks would hang together anyway.
final class SourcePlaces: Sendable {
    /// All disks lie on one.
    var areOne: Bool { one.load(ordering: .relaxed) }
    private let one = Atomic<Bool>(true)
    private let disks = Mutex<[String: Int]>([:])

    /// A disk at its place, for as long as it is kept.
    final class Stay: Sendable {
        private let places: SourcePlaces
        private let place: String

        fileprivate init(_ places: SourcePlaces, _ place: String) {
            self.places = places
            self.place = place
            places.change(place, by: 1)
        }

        deinit { places.change(place, by: -1) }
    }

    /// Counts a disk; before it can be used.
    func enter(_ source: RawSource, fileSystem: UInt64?) -> Stay {
        Stay(self, fileSystem.map { "file system \($0)" } ?? "\(source.identity) \(source.path)")
    }

    private func change(_ place: String, by count: Int) {
        disks.withLock { disks in
            let left = disks[place, default: 0] + count
            disks[place] = left > 0 ? left : nil
            one.store(disks.count <= 1, ordering: .releasing)
        }
    }
}
