import CFrontEnd
import Glibc
import Synchronization
import VhostFrontEnd

/// Where a queue lies, as numbers: its memory is held by whoever runs the load.
struct LoadRings: Sendable {
    /// Where the guest's address zero is mapped.
    let base: UInt
    let descriptors: UInt64
    let available: UInt64
    let used: UInt64
    let size: UInt16
    let hasEventIndex: Bool
    /// Where the queue's requests are.
    let slots: UInt64
    let kick: Descriptor
    /// Tells of calls; the call itself is shared, and whoever shares it says whether it blocks.
    let callEdge: Descriptor
}

/// A driver's queue for speed alone: each slot has its chain for ever, and nothing is allocated.
@safe struct LoadQueue: ~Copyable {
    /// Header, data, status.
    static let chainLength = 3
    private static let statusOffset = 24
    private static let tableOffset = 64
    private static let dataOffset = 4096
    private static let hasNext: UInt16 = 1
    private static let isWritten: UInt16 = 2
    private static let isTable: UInt16 = 4

    // SAFETY (the whole type): `base` maps all of the guest's memory for longer than a queue is
    // used, and every place is computed from sizes that the memory was made for.
    private let base: UnsafeMutableRawPointer
    private let rings: LoadRings
    private let mask: UInt16
    private let slotBytes: Int
    private let blockBytes: Int
    private let usesIndirect: Bool
    private var staged: UInt16 = 0
    private var published: UInt16 = 0
    private var collected: UInt16 = 0

    init?(_ rings: LoadRings, _ plan: LoadPlan) {
        guard let start = unsafe UnsafeMutableRawPointer(bitPattern: rings.base) else { return nil }
        unsafe base = start
        self.rings = rings
        mask = rings.size - 1
        slotBytes = plan.slotBytes
        blockBytes = plan.blockBytes
        usesIndirect = plan.usesIndirect
        for slot in 0..<plan.depth { prepare(slot) }
    }

    private func slot(_ slot: Int) -> Int { Int(rings.slots) + slot * slotBytes }

    private func store<T: BitwiseCopyable>(_ value: T, _ offset: Int) {
        unsafe base.storeBytes(of: value, toByteOffset: offset, as: T.self)
    }

    private func word(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt16>> {
        unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
    }

    /// Where a slot's descriptors are, and the number of the first one.
    private func chain(_ slot: Int) -> (place: Int, first: UInt16) {
        guard usesIndirect else {
            let first = Self.chainLength * slot
            return (Int(rings.descriptors) + 16 * first, UInt16(first))
        }
        return (self.slot(slot) + Self.tableOffset, 0)
    }

    private func describe(_ place: Int, _ address: Int, _ count: Int, _ flags: UInt16, next: UInt16)
    {
        store(UInt64(address), place)
        store(UInt32(count), place + 8)
        store(flags, place + 12)
        store(next, place + 14)
    }

    private func prepare(_ slot: Int) {
        let start = self.slot(slot)
        let (place, first) = chain(slot)
        describe(place, start, 16, Self.hasNext, next: first + 1)
        describe(
            place + 16, start + Self.dataOffset, blockBytes, Self.hasNext, next: first + 2)
        describe(place + 32, start + Self.statusOffset, 1, Self.isWritten, next: 0)
        if usesIndirect {
            describe(
                Int(rings.descriptors) + 16 * slot, place, 16 * Self.chainLength, Self.isTable,
                next: 0)
        }
        // Content that differs from slot to slot.
        for index in 0..<blockBytes / 8 {
            store(
                UInt64(slot) &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(index),
                start + Self.dataOffset + 8 * index)
        }
    }

    /// Puts a request into the ring without telling of it.
    mutating func stage(_ slot: Int, isRead: Bool, offset: UInt64) {
        let start = self.slot(slot)
        store(UInt32(isRead ? 0 : 1), start)
        store(UInt32(0), start + 4)
        store(offset / 512, start + 8)
        store(UInt8(0xee), start + Self.statusOffset)
        let (place, _) = chain(slot)
        store(Self.hasNext | (isRead ? Self.isWritten : 0), place + 16 + 12)
        let head = UInt16(usesIndirect ? slot : Self.chainLength * slot)
        store(head, Int(rings.available) + 4 + 2 * Int(staged & mask))
        staged &+= 1
    }

    /// Tells the device of all that was staged, and wakes it if it wants to be woken.
    mutating func publish() -> Bool {
        guard staged != published else { return false }
        unsafe word(Int(rings.available) + 2).pointee.store(staged, ordering: .releasing)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        let old = published
        published = staged
        if rings.hasEventIndex {
            let event = unsafe word(Int(rings.used) + 4 + 8 * Int(rings.size)).pointee
                .load(ordering: .relaxed)
            guard staged &- event &- 1 < staged &- old else { return false }
        } else {
            guard unsafe word(Int(rings.used)).pointee.load(ordering: .relaxed) & 1 == 0 else {
                return false
            }
        }
        rings.kick.signal()
        return true
    }

    /// Whether the device has given something back.
    var hasAnswers: Bool {
        unsafe word(Int(rings.used) + 2).pointee.load(ordering: .acquiring) != collected
    }

    /// The next slot that was given back, and its status.
    mutating func next() -> (slot: Int, status: UInt8)? {
        guard hasAnswers else { return nil }
        let place = Int(rings.used) + 4 + 8 * Int(collected & mask)
        let head = unsafe base.load(fromByteOffset: place, as: UInt32.self)
        collected &+= 1
        let slot = usesIndirect ? Int(head) : Int(head) / Self.chainLength
        let status = unsafe base.load(
            fromByteOffset: self.slot(slot) + Self.statusOffset, as: UInt8.self)
        return (slot, status)
    }

    /// Wants no call for the next 32,767 answers.
    func suppressCalls() {
        if rings.hasEventIndex {
            unsafe word(Int(rings.available) + 4 + 2 * Int(rings.size)).pointee
                .store(collected &+ 0x7fff, ordering: .relaxed)
        } else {
            unsafe word(Int(rings.available)).pointee.store(1, ordering: .relaxed)
        }
    }

    /// Waits for a call, unless something was given back meanwhile; whether it has slept.
    func sleep() -> Bool {
        if rings.hasEventIndex {
            unsafe word(Int(rings.available) + 4 + 2 * Int(rings.size)).pointee
                .store(collected, ordering: .relaxed)
        } else {
            unsafe word(Int(rings.available)).pointee.store(0, ordering: .relaxed)
        }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        guard !hasAnswers else { return false }
        rings.callEdge.waitForEdge()
        if !rings.hasEventIndex { suppressCalls() }
        return true
    }

    /// Waits without giving the processor away.
    func spin() { while !hasAnswers { front_end_pause() } }
}
