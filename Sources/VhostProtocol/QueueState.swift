// What a session knows about one queue.

/// Guest addresses of a queue's rings.
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

    /// Bytes of an available ring including its event index.
    package static func availableBytes(_ size: UInt16) -> UInt64 {
        SplitRing.elementsOffset + UInt64(size) * SplitRing.availableElementBytes
            + SplitRing.eventBytes
    }

    /// Bytes of a used ring including its event index.
    package static func usedBytes(_ size: UInt16) -> UInt64 {
        SplitRing.elementsOffset + UInt64(size) * SplitRing.usedElementBytes
            + SplitRing.eventBytes
    }

    /// Translates front-end addresses and checks alignment and bounds.
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

/// State of one queue.
struct QueueState: Equatable, Sendable {
    /// Number of entries, once set.
    var size: UInt16?
    /// The available index to start from.
    var base: UInt16 = 0
    /// Addresses of its rings, once set.
    var addresses: UserRingAddresses?
    /// Set by SET_VRING_ENABLE.
    var isEnabled = false
    /// Guest addresses of its rings while it is started, including while it is paused.
    var running: RingAddresses?
}
