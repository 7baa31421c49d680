import Glibc
import ServerInterface
import Synchronization
import SystemLayer

/// Keeps room for machines whose disks lie on the target's file system: the target fails before
/// they run out of it.
final class TargetRoom: Sendable {
    /// `FileCalls.fileSystem` of the target; nil: it takes no room there, as it is a device, or a
    /// file without holes that is written over.
    let fileSystem: UInt64?
    private let descriptor: Int32
    private let path: String
    private let room: Mutex<MachineRoom>
    /// Bytes that may be written, and how long, before the file system is asked again.
    private let allowance = Atomic<Int>(0)
    private let askedAt = Atomic<UInt64>(0)

    private static let askNanoseconds: UInt64 = 20_000_000
    private static let allowanceMax = 64 << 20

    /// The descriptor must stay open.
    init(_ order: PushOrder, descriptor: Int32) {
        let isFilled =
            !order.isNew && order.format == .raw
            && FileCalls.allocatedBytes(descriptor) ?? 0 >= order.sizeBytes
        fileSystem =
            order.kind == .block || isFilled ? nil : FileCalls.fileSystem(descriptor)
        self.descriptor = descriptor
        path = order.path
        room = Mutex(order.room)
    }

    func set(_ value: MachineRoom) {
        room.withLock { $0 = value }
        allowance.store(0, ordering: .relaxed)
    }

    /// Throws when so many more bytes would take room that is kept.
    func check(_ count: Int) throws(PushFailure) {
        let left = allowance.subtract(count, ordering: .relaxed).newValue
        let now = MonotonicClock.now()
        if left >= 0, now < askedAt.load(ordering: .relaxed) + Self.askNanoseconds { return }
        try look(count)
    }

    /// Asks the file system.
    func look(_ count: Int = 0) throws(PushFailure) {
        guard let fileSystem, room.withLock({ $0.fileSystems.contains(fileSystem) }),
            let space = FileCalls.space(descriptor),
            let kept = room.withLock({
                $0.keptBytes(on: fileSystem, totalBytes: space.totalBytes)
            })
        else {
            allowance.store(Self.allowanceMax, ordering: .relaxed)
            return askedAt.store(MonotonicClock.now(), ordering: .relaxed)
        }
        guard space.freeBytes > kept, space.freeBytes - kept > UInt64(count) else {
            throw PushFailure(
                "'\(path)': its file system also holds a machine's disk: of its "
                    + "\(space.freeBytes) free bytes \(kept) are kept for machines "
                    + "(--scratch-reserve)")
        }
        // Threads write beside each other, and machines as well.
        let some = Int(min((space.freeBytes - kept) / 8, UInt64(Self.allowanceMax)))
        allowance.store(some, ordering: .relaxed)
        askedAt.store(MonotonicClock.now(), ordering: .relaxed)
    }
}
