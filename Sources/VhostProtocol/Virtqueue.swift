// The device's side of a split virtqueue (virtio 2.7). All state is private; nothing is read back
// from the rings, which the guest can write. Notifications are in Virtqueue+Notifications.swift,
// the in-flight area in InflightPlaces.swift.

/// A split virtqueue that a guest drives.
///
/// Takes chains from the available ring and returns them through the used ring. Whatever the rings
/// contain, at most `size` chains are in flight, no head twice, and every walk ends. After a fault
/// the queue must not be used. Nothing is allocated after `init`.
@frozen
public struct Virtqueue: ~Copyable {
    /// Entries; a power of two.
    public let size: UInt16
    @usableFromInline let hasEventIndex: Bool
    @usableFromInline let hasIndirect: Bool
    /// Places of the rings; updated when memory changes.
    @usableFromInline var descriptors: GuestPlace
    @usableFromInline var available: GuestPlace
    @usableFromInline var used: GuestPlace

    /// The available index of the next chain to take.
    @usableFromInline var takenAvailable: UInt16
    /// The available index as last loaded: chains up to it can be taken without another load.
    @usableFromInline var seenAvailable: UInt16
    /// The published used index.
    @usableFromInline var usedIndex: UInt16
    /// The used index at the last check for a notification; nil before the first.
    @usableFromInline var notifiedIndex: UInt16?
    /// The guest was asked for a kick with its next chain; not kept up without an event index.
    @usableFromInline var wantsKick = true
    /// One bit per head, set from `next` to `publish`: until then the guest cannot legally make it
    /// available again.
    @usableFromInline var inFlight: [UInt64]
    /// Number of bits set.
    @usableFromInline var headsInFlight = 0
    /// Heads completed since the last `publish`.
    @usableFromInline var batch: [UInt16]
    @usableFromInline var batchCount: UInt16 = 0

    /// This queue's part of the in-flight area, if there is one.
    @usableFromInline var inflight: InflightPlaces?
    /// Number of the next head taken; gives the order for resubmission.
    @usableFromInline var nextCounter: UInt64 = 0
    /// Heads to resubmit, in reverse order.
    @usableFromInline var resubmitted: [UInt16] = []

    /// The available index of the next chain to take; a stopped queue resumes there.
    public var nextAvailable: UInt16 { takenAvailable }
    /// Chains taken and not yet published as used; at most `size`.
    public var inFlightCount: Int { headsInFlight }

    /// Chains completed since the last `publish`.
    @inlinable public var unpublishedCount: Int { Int(batchCount) }

    /// The guest's available index as it is now, unchecked.
    @inlinable
    public func availableIndex<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> UInt16 {
        memory.load16(available.advanced(by: SplitRing.indexOffset))
    }

    /// Opens a queue; `inflight` is its part of the in-flight area, if there is one.
    ///
    /// If the area has been used before, `next` first returns the chains that were in flight, in
    /// their original order, and the available index is derived from the area instead of `setup`.
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
        // A front-end whose back-end died does not know the index; the area does.
        takenAvailable = found.map { usedIndex &+ UInt16($0.heads.count) } ?? setup.base
        seenAvailable = takenAvailable
    }

    /// Looks up the rings again after memory has changed; their guest addresses are the same.
    package mutating func relocate<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ rings: RingAddresses
    ) throws(VirtqueueFault) {
        let places = try RingPlaces(memory, rings, size: size)
        descriptors = places.descriptors
        available = places.available
        used = places.used
    }

    /// Whether `next` would return a chain.
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

    /// Takes the next chain, if there is one, and stores its segments in `segments`.
    ///
    /// The chain is in flight until it is completed and published.
    @inlinable
    public mutating func next<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, into segments: inout MutableSpan<GuestSegment>
    ) throws(VirtqueueFault) -> DescriptorChain? {
        guard try hasNext(memory) else { return nil }
        let head: UInt16
        if let waiting = resubmitted.popLast() {
            // The area already has it, with its original number.
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

    /// Takes the next entry of the available ring, which is not empty.
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

    /// Returns a chain to the guest, effective with the next `publish`.
    ///
    /// `head` came from `next` and has not been completed; `written` is the number of bytes written
    /// to it.
    @inlinable
    public mutating func complete<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, head: UInt16, written: UInt32
    ) {
        precondition(batchCount < size, "a chain is completed once")
        let entry = UInt64((usedIndex &+ batchCount) & (size - 1))
        let place = used.advanced(
            by: SplitRing.elementsOffset &+ entry &* SplitRing.usedElementBytes)
        memory.store32(UInt32(head), place)
        memory.store32(written, place.advanced(by: 4))
        inflight?.link(memory, head)
        batch[Int(batchCount)] = head
        batchCount += 1
    }

    /// Publishes completed chains.
    ///
    /// Returns whether to signal the guest.
    @inlinable
    public mutating func publish<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> Bool {
        guard batchCount > 0 else { return false }
        usedIndex &+= batchCount
        memory.store16(usedIndex, used.advanced(by: SplitRing.indexOffset))
        for index in 0..<Int(batchCount) {
            remove(batch[index])
            inflight?.clear(memory, batch[index])
        }
        inflight?.settle(memory, usedIndex)
        batchCount = 0
        return wantsCall(memory)
    }

    // MARK: Heads in flight

    /// Marks a head; returns false if it was already marked.
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

/// Places of a queue's rings.
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
