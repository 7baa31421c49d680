// The driver's side of a queue: this server is a guest of the programs that it starts.

/// Places of a queue whose requests have a header, one buffer and a status each, in bytes from its
/// start on.
///
/// Each slot has three descriptors, a header and a status of its own, so that nothing is looked for
/// when a request is put.
public enum SlotQueueLayout {
    /// Entries of the rings.
    @inlinable public static var entries: UInt16 { 512 }
    /// Requests that may be in flight: three descriptors each.
    @inlinable public static var slots: UInt16 { entries / 3 }

    @inlinable public static var descriptors: UInt64 { 0 }
    @inlinable public static var available: UInt64 { UInt64(entries) * 16 }
    /// So placed that each element is aligned to its size.
    @inlinable public static var used: UInt64 { available + 2 * UInt64(entries) + 12 }
    /// Of each slot: 16 bytes of a header, then the status.
    @inlinable public static var requests: UInt64 { used + 8 * UInt64(entries) + 20 }
    @inlinable public static var requestBytes: UInt64 { 32 }
    /// All of it, in bytes: whole pages.
    @inlinable public static var byteCount: UInt64 {
        (requests + UInt64(slots) * requestBytes + 4095) / 4096 * 4096
    }
}

/// What a device has done that no device does; its queue is of no use any more.
public enum SlotQueueFault: Error, Equatable, Sendable, BitwiseCopyable {
    /// More requests are said to be done than are under way.
    case usedIndexJumped(by: UInt16, inFlight: Int)
    /// A chain that nobody has put, or that was done before.
    case strangeHead(UInt32)

    /// One line for a log.
    package var text: String {
        switch self {
        case .usedIndexJumped(let count, let inFlight):
            "it says that it has done \(count) requests, \(inFlight) are under way"
        case .strangeHead(let head):
            "it says that it has done request \(head), which is not under way"
        }
    }
}

/// The driver's side of one split queue with event indexes (virtio 2.7), for reads and writes.
///
/// The other side may write whatever it likes into the memory at any moment: everything is loaded
/// once, and checked. Nothing is read that this side has written.
public struct SlotQueue: ~Copyable {
    @usableFromInline let base: GuestPlace
    /// What the device knows `base` as.
    @usableFromInline let address: UInt64
    @usableFromInline var availableIndex: UInt16 = 0
    @usableFromInline var toldIndex: UInt16 = 0
    @usableFromInline var takenIndex: UInt16 = 0
    @usableFromInline var free: [UInt16]
    @usableFromInline var isInFlight: [Bool]

    /// A queue at `base`, in memory that holds zeros; `address` is what the device knows it as.
    public init(at base: GuestPlace, address: UInt64) {
        self.base = base
        self.address = address
        free = (0..<SlotQueueLayout.slots).reversed()
        isInFlight = Array(repeating: false, count: Int(SlotQueueLayout.slots))
    }

    /// Requests that are under way.
    @inlinable public var inFlight: Int { isInFlight.count - free.count }

    /// Whether one more can be put.
    @inlinable public var hasRoom: Bool { !free.isEmpty }

    /// Puts a read or a write of so many bytes at a sector; the device sees it after `publish`.
    ///
    /// `data` is the buffer as the device knows it. Returns the request's slot, nil: there is none.
    @inlinable
    public mutating func put<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, isWrite: Bool, sector: UInt64, data: UInt64, byteCount: UInt32
    ) -> UInt16? {
        guard let slot = free.popLast() else { return nil }
        isInFlight[Int(slot)] = true
        let offset = SlotQueueLayout.requests &+ UInt64(slot) &* SlotQueueLayout.requestBytes
        let header = base.advanced(by: offset)
        memory.store64(UInt64(isWrite ? BlockType.write : BlockType.read), header)
        memory.store64(sector, header.advanced(by: 8))
        // None that a device gives.
        memory.store8(0xff, header.advanced(by: BlockShape.headerBytes))
        let head = slot &* 3
        let next = UInt64(SplitRing.nextFlag)
        let written = UInt64(SplitRing.writeFlag)
        describe(
            memory, head, at: address &+ offset, UInt32(BlockShape.headerBytes), next)
        describe(memory, head &+ 1, at: data, byteCount, isWrite ? next : next | written)
        describe(
            memory, head &+ 2, at: address &+ offset &+ BlockShape.headerBytes, 1, written)
        let element = UInt64(availableIndex % SlotQueueLayout.entries)
        memory.store16(
            head,
            base.advanced(
                by: SlotQueueLayout.available &+ SplitRing.elementsOffset &+ element
                    &* SplitRing.availableElementBytes))
        availableIndex &+= 1
        return slot
    }

    @inlinable
    func describe<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ index: UInt16, at address: UInt64, _ count: UInt32,
        _ flags: UInt64
    ) {
        let place = base.advanced(
            by: SlotQueueLayout.descriptors &+ UInt64(index) &* SplitRing.descriptorBytes)
        memory.store64(address, place)
        memory.store64(
            UInt64(count) | flags << 32 | UInt64(index &+ 1) << 48, place.advanced(by: 8))
    }

    /// Whether something was put that the device has not been shown.
    @inlinable public var isUnpublished: Bool { toldIndex != availableIndex }

    /// Shows the device what was put; returns whether it wants to be kicked.
    @inlinable
    public mutating func publish<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> Bool {
        guard isUnpublished else { return false }
        memory.store16(
            availableIndex, base.advanced(by: SlotQueueLayout.available &+ SplitRing.indexOffset))
        memory.fence()
        let event = memory.load16(
            base.advanced(
                by: SlotQueueLayout.used &+ SplitRing.elementsOffset &+ UInt64(
                    SlotQueueLayout.entries)
                    &* SplitRing.usedElementBytes))
        defer { toldIndex = availableIndex }
        return Virtqueue.hasPassed(event, from: toldIndex, to: availableIndex)
    }

    /// A request that is over.
    public struct Done: Equatable, Sendable, BitwiseCopyable {
        public let slot: UInt16
        /// Whether the device says that all of it was done.
        public let isOK: Bool

        @inlinable
        init(slot: UInt16, isOK: Bool) {
            self.slot = slot
            self.isOK = isOK
        }
    }

    /// Takes the next request that is over; its slot can be used again.
    @inlinable
    public mutating func take<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) throws(SlotQueueFault) -> Done? {
        let count = usedIndex(memory) &- takenIndex
        guard count != 0 else { return nil }
        guard Int(count) <= inFlight else {
            throw .usedIndexJumped(by: count, inFlight: inFlight)
        }
        let element = UInt64(takenIndex % SlotQueueLayout.entries)
        let head = UInt32(
            truncatingIfNeeded: memory.load64(
                base.advanced(
                    by: SlotQueueLayout.used &+ SplitRing.elementsOffset &+ element
                        &* SplitRing.usedElementBytes)))
        guard head.isMultiple(of: 3), head / 3 < UInt32(SlotQueueLayout.slots),
            isInFlight[Int(head / 3)]
        else { throw .strangeHead(head) }
        let slot = UInt16(head / 3)
        let status = memory.load8(
            base.advanced(
                by: SlotQueueLayout.requests &+ UInt64(slot) &* SlotQueueLayout.requestBytes
                    &+ BlockShape.headerBytes))
        takenIndex &+= 1
        isInFlight[Int(slot)] = false
        free.append(slot)
        return Done(slot: slot, isOK: status == BlockStatus.ok.rawValue)
    }

    /// Whether something is over that was not taken.
    @inlinable
    public func hasNext<Memory: GuestMemory & ~Copyable>(_ memory: borrowing Memory) -> Bool {
        usedIndex(memory) != takenIndex
    }

    /// Asks the device to call for the next one that is over, then looks once more.
    ///
    /// Returns whether one is already there. Until the next time the device calls at most once.
    @inlinable
    public mutating func wantCalls<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> Bool {
        memory.store16(
            takenIndex,
            base.advanced(
                by: SlotQueueLayout.available &+ SplitRing.elementsOffset
                    &+ UInt64(SlotQueueLayout.entries) &* SplitRing.availableElementBytes))
        memory.fence()
        return hasNext(memory)
    }

    @inlinable
    func usedIndex<Memory: GuestMemory & ~Copyable>(_ memory: borrowing Memory) -> UInt16 {
        memory.load16(base.advanced(by: SlotQueueLayout.used &+ SplitRing.indexOffset))
    }
}
