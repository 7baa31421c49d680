// The device's side of a split virtqueue (virtio 2.7). What is kept here is never read back from
// the rings: both are the guest's. Notifications are in Virtqueue+Notifications.swift, what
// outlives the process in InflightPlaces.swift.

/// A split virtqueue that a guest drives.
///
/// Takes chains out of the available ring and puts them into the used one. A guest can break only
/// its own queue: whatever the rings hold, at most `size` chains are in flight, each head once, and
/// every walk ends. After a fault the queue is of no use. Nothing is allocated after `init`.
@frozen
public struct Virtqueue: ~Copyable {
    /// Entries; a power of two.
    public let size: UInt16
    @usableFromInline let hasEventIndex: Bool
    @usableFromInline let hasIndirect: Bool
    /// Where the rings are; looked up anew when memory changes.
    @usableFromInline var descriptors: GuestPlace
    @usableFromInline var available: GuestPlace
    @usableFromInline var used: GuestPlace

    /// The available index of the next chain to take.
    @usableFromInline var takenAvailable: UInt16
    /// The available index up to which chains may be taken without another look.
    @usableFromInline var seenAvailable: UInt16
    /// The used index that the guest has been told.
    @usableFromInline var usedIndex: UInt16
    /// The used index at which the guest was notified last; nil: never.
    @usableFromInline var notifiedIndex: UInt16?
    /// One bit for each head that was taken and not completed.
    @usableFromInline var inFlight: [UInt64]
    /// How many there are.
    @usableFromInline var headsInFlight = 0
    /// Heads completed since the used index was told last.
    @usableFromInline var batch: [UInt16]
    @usableFromInline var batchCount: UInt16 = 0

    /// What outlives the process, if anything does.
    @usableFromInline var inflight: InflightPlaces?
    /// Numbers heads in the order in which they were taken.
    @usableFromInline var nextCounter: UInt64 = 0
    /// Heads that an earlier process had in flight, the next one last.
    @usableFromInline var resubmitted: [UInt16] = []

    /// The available index of the next chain to take: where a queue that was stopped goes on.
    public var nextAvailable: UInt16 { takenAvailable }
    /// Chains that were taken and not completed; at most `size`.
    public var inFlightCount: Int { headsInFlight }

    /// A queue at its start; `inflight` is its part of the area, if there is one.
    ///
    /// With an area that was used, chains in flight come first out of `next`, in the order in which
    /// they were taken, and the available index is what follows from them instead of what `setup`
    /// says.
    package init<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ setup: QueueSetup, inflight: GuestPlace? = nil
    ) throws(VirtqueueFault) {
        let size = setup.size
        precondition(BackEndSession.isQueueSize(UInt32(size)), "the session has checked it")
        let places = try RingPlaces(memory, setup.rings, size: size)
        let usedIndex = memory.load16(places.used.advanced(by: SplitRing.indexOffset))
        let area = inflight.map { InflightPlaces(place: $0, size: size) }
        let found = try area?.open(memory, usedIndex: usedIndex)
        self.size = size
        hasEventIndex = setup.hasEventIndex
        hasIndirect = setup.hasIndirectDescriptors
        descriptors = places.descriptors
        available = places.available
        used = places.used
        self.usedIndex = usedIndex
        inFlight = Array(repeating: 0, count: (Int(size) + 63) / 64)
        batch = Array(repeating: 0, count: Int(size))
        self.inflight = area
        resubmitted = found?.heads ?? []
        nextCounter = found?.nextCounter ?? 0
        // A front-end whose back-end has vanished cannot know where it was; the area does.
        takenAvailable = found.map { usedIndex &+ UInt16($0.heads.count) } ?? setup.base
        seenAvailable = takenAvailable
    }

    /// Looks the rings up anew, at the same guest addresses, after memory has changed.
    package mutating func relocate<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ rings: RingAddresses
    ) throws(VirtqueueFault) {
        let places = try RingPlaces(memory, rings, size: size)
        descriptors = places.descriptors
        available = places.available
        used = places.used
    }

    /// Whether `next` would find a chain.
    @inlinable
    public mutating func hasNext<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) throws(VirtqueueFault) -> Bool {
        if !resubmitted.isEmpty || takenAvailable != seenAvailable { return true }
        let found = memory.load16(available.advanced(by: SplitRing.indexOffset))
        guard found &- takenAvailable <= size else {
            throw .availableIndex(next: takenAvailable, found: found)
        }
        seenAvailable = found
        return found != takenAvailable
    }

    /// Takes the next chain and puts its segments into `segments`; nil: there is none.
    ///
    /// The chain is in flight until `complete`.
    @inlinable
    public mutating func next<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, into segments: inout MutableSpan<GuestSegment>
    ) throws(VirtqueueFault) -> DescriptorChain? {
        guard try hasNext(memory) else { return nil }
        let head: UInt16
        if let waiting = resubmitted.popLast() {
            // The area names it already, in its old order.
            head = waiting
            guard insert(head) else { throw .headInFlight(head) }
        } else {
            head = try takeAvailable(memory)
            guard insert(head) else { throw .headInFlight(head) }
            inflight?.take(memory, head, counter: nextCounter)
            nextCounter &+= 1
        }
        var chain = DescriptorChain(head: head)
        try chain.walk(
            memory, table: descriptors, count: size, hasIndirect: hasIndirect, into: &segments)
        return chain
    }

    /// The next entry of the available ring, of which there is one.
    @inlinable
    mutating func takeAvailable<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) throws(VirtqueueFault) -> UInt16 {
        let entry = UInt64(takenAvailable & (size - 1))
        let head = memory.load16(
            available.advanced(
                by: SplitRing.elementsOffset &+ entry &* SplitRing.availableElementBytes))
        guard head < size else { throw .headOutOfRange(head) }
        takenAvailable &+= 1
        return head
    }

    /// Gives a chain back with so many bytes written; the guest sees it with the next `publish`.
    ///
    /// `head` is one that `next` has returned, and is in flight.
    @inlinable
    public mutating func complete<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, head: UInt16, written: UInt32
    ) {
        remove(head)
        let entry = UInt64((usedIndex &+ batchCount) & (size - 1))
        let place = used.advanced(
            by: SplitRing.elementsOffset &+ entry &* SplitRing.usedElementBytes)
        memory.store32(UInt32(head), place)
        memory.store32(written, place.advanced(by: 4))
        inflight?.link(memory, head)
        batch[Int(batchCount)] = head
        batchCount += 1
    }

    /// Tells the guest of what was completed since; whether it wants to be notified of that.
    @inlinable
    public mutating func publish<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> Bool {
        guard batchCount > 0 else { return false }
        usedIndex &+= batchCount
        memory.store16(usedIndex, used.advanced(by: SplitRing.indexOffset))
        if let inflight {
            for index in 0..<Int(batchCount) { inflight.clear(memory, batch[index]) }
            inflight.settle(memory, usedIndex)
        }
        batchCount = 0
        return wantsCall(memory)
    }

    // MARK: Heads in flight

    /// Marks a head; false: it was marked.
    @inlinable
    mutating func insert(_ head: UInt16) -> Bool {
        let bit: UInt64 = 1 << UInt64(head & 63)
        guard inFlight[Int(head >> 6)] & bit == 0 else { return false }
        inFlight[Int(head >> 6)] |= bit
        headsInFlight += 1
        return true
    }

    @inlinable
    mutating func remove(_ head: UInt16) {
        let bit: UInt64 = 1 << UInt64(head & 63)
        precondition(inFlight[Int(head >> 6)] & bit != 0, "a chain is completed once")
        inFlight[Int(head >> 6)] &= ~bit
        headsInFlight -= 1
    }
}

/// Where the rings of a queue are, each in one piece.
private struct RingPlaces {
    let descriptors: GuestPlace
    let available: GuestPlace
    let used: GuestPlace

    init<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ rings: RingAddresses, size: UInt16
    ) throws(VirtqueueFault) {
        guard
            let descriptors = Self.place(
                memory, rings.descriptors, RingAddresses.descriptorBytes(size)),
            let available = Self.place(
                memory, rings.available, RingAddresses.availableBytes(size)),
            let used = Self.place(memory, rings.used, RingAddresses.usedBytes(size))
        else { throw .ringOutsideMemory }
        self.descriptors = descriptors
        self.available = available
        self.used = used
    }

    private static func place<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ address: UInt64, _ byteCount: UInt64
    ) -> GuestPlace? {
        guard let segment = memory.segment(at: address, byteCount: byteCount),
            segment.byteCount == byteCount
        else { return nil }
        return segment.place
    }
}
