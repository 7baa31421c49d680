// One queue as its session knows it, and where its rings are.

/// Where a queue's rings are in the guest's memory.
package struct RingAddresses: Equatable, Sendable, BitwiseCopyable {
    /// The descriptor table.
    package let descriptors: UInt64
    /// The available ring.
    package let available: UInt64
    /// The used ring.
    package let used: UInt64

    /// Rings at the given addresses.
    package init(descriptors: UInt64, available: UInt64, used: UInt64) {
        self.descriptors = descriptors
        self.available = available
        self.used = used
    }

    /// Bytes of a descriptor table of `size` entries.
    package static func descriptorBytes(_ size: UInt16) -> UInt64 {
        UInt64(size) * SplitRing.descriptorBytes
    }

    /// Bytes of an available ring, with the event index behind it.
    package static func availableBytes(_ size: UInt16) -> UInt64 {
        SplitRing.elementsOffset + UInt64(size) * SplitRing.availableElementBytes
            + SplitRing.eventBytes
    }

    /// Bytes of a used ring, with the event index behind it.
    package static func usedBytes(_ size: UInt16) -> UInt64 {
        SplitRing.elementsOffset + UInt64(size) * SplitRing.usedElementBytes
            + SplitRing.eventBytes
    }

    /// Where in the guest the rings of a front-end's queue are.
    init(
        _ user: UserRingAddresses, size: UInt16, queue: Int, in table: MemoryTable
    ) throws(SessionRefusal) {
        func find(
            _ address: UInt64, _ byteCount: UInt64, alignment: UInt64
        ) throws(SessionRefusal) -> UInt64 {
            guard let found = table.guestAddress(ofUser: address, byteCount: byteCount),
                found.isMultiple(of: alignment)
            else { throw .ringOutsideMemory(queue: queue, address: address) }
            return found
        }
        descriptors = try find(
            user.descriptors, Self.descriptorBytes(size), alignment: SplitRing.descriptorBytes)
        available = try find(
            user.available, Self.availableBytes(size), alignment: SplitRing.availableAlignment)
        used = try find(user.used, Self.usedBytes(size), alignment: SplitRing.usedAlignment)
    }
}

/// What a session knows of one queue.
struct QueueState: Equatable, Sendable {
    /// Entries, once they are told.
    var size: UInt16?
    /// The next available index to begin with.
    var base: UInt16 = 0
    /// Where its rings are, once they are told.
    var addresses: UserRingAddresses?
    /// Whether SET_VRING_ENABLE lets it run.
    var isEnabled = false
    /// Where its rings are in the guest while it is started, paused or not.
    var running: RingAddresses?
}
