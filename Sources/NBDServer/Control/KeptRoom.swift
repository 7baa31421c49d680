import Synchronization

/// Free bytes of scratch's file system that are left to machines' disks there; 0 where it holds
/// none.
///
/// Set at the begin, or when a disk comes to that file system later.
final class KeptRoom: Sendable {
    private let value: Atomic<UInt64>

    init(_ bytes: UInt64) { value = Atomic(bytes) }

    var bytes: UInt64 { value.load(ordering: .relaxed) }

    func set(_ bytes: UInt64) { value.store(bytes, ordering: .relaxed) }
}
