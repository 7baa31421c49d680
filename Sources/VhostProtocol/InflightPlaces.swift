// Records what a queue has in flight in memory that outlives the process (vhost-user, "Inflight I/O
// tracking"). Stores follow the specification's order, because the process may die between any two.
// The front-end can change the area, so it is read only at the start, and validated.

/// One queue's part of an in-flight area.
@frozen
@usableFromInline
struct InflightPlaces: BitwiseCopyable {
    @usableFromInline let place: GuestPlace
    @usableFromInline let size: UInt16

    @inlinable init(place: GuestPlace, size: UInt16) {
        self.place = place
        self.size = size
    }

    /// Size of one queue's part, including padding, in bytes.
    static func partBytes(_ size: UInt16) -> UInt64 {
        let bytes = InflightLayout.states + UInt64(size) * InflightLayout.stateBytes
        return (bytes + InflightLayout.alignment - 1) & ~(InflightLayout.alignment - 1)
    }

    @inlinable
    func state(_ head: UInt16, _ offset: UInt64) -> GuestPlace {
        place.advanced(
            by: InflightLayout.states &+ UInt64(head) &* InflightLayout.stateBytes &+ offset)
    }

    // MARK: While the queue runs

    /// A chain has been taken.
    @inlinable
    func take<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ head: UInt16, counter: UInt64
    ) {
        memory.store64(counter, state(head, InflightLayout.stateCounter))
        memory.store8(1, state(head, InflightLayout.stateInflight))
    }

    /// A chain is in the used ring, but the used index does not include it yet.
    @inlinable
    func link<Memory: GuestMemory & ~Copyable>(_ memory: borrowing Memory, _ head: UInt16) {
        let last = place.advanced(by: InflightLayout.lastBatchHead)
        memory.store16(memory.load16(last), state(head, InflightLayout.stateNext))
        memory.store16(head, last)
    }

    /// The published used index includes the chain.
    @inlinable
    func clear<Memory: GuestMemory & ~Copyable>(_ memory: borrowing Memory, _ head: UInt16) {
        memory.store8(0, state(head, InflightLayout.stateInflight))
    }

    /// No chain before this used index is in flight.
    @inlinable
    func settle<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ usedIndex: UInt16
    ) {
        memory.store16(usedIndex, place.advanced(by: InflightLayout.usedIndex))
    }

    // MARK: When a queue starts

    /// What an earlier process had in flight.
    struct Found {
        /// Heads in reverse order of taking.
        var heads: [UInt16]
        /// One more than the highest number in use.
        var nextCounter: UInt64
    }

    /// Initialises an unused area and returns nil, or returns what was in flight.
    func open<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, usedIndex: UInt16
    ) throws(VirtqueueFault) -> Found? {
        let version = memory.load16(place.advanced(by: InflightLayout.version))
        guard version != 0 else {
            memory.store16(size, place.advanced(by: InflightLayout.descriptorCount))
            settle(memory, usedIndex)
            memory.store16(
                InflightLayout.currentVersion, place.advanced(by: InflightLayout.version))
            return nil
        }
        let count = memory.load16(place.advanced(by: InflightLayout.descriptorCount))
        guard version == InflightLayout.currentVersion, count == size else {
            throw .inflightShape(version: version, descriptors: count)
        }
        var heads = (0..<size).filter {
            memory.load8(state($0, InflightLayout.stateInflight)) != 0
        }
        if !heads.isEmpty {
            let finished = try lastBatch(memory, usedIndex: usedIndex)
            for head in finished { clear(memory, head) }
            heads.removeAll { finished.contains($0) }
        }
        settle(memory, usedIndex)
        return order(memory, heads)
    }

    /// Heads of the last batch, which are in the used ring but may still be marked.
    private func lastBatch<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, usedIndex: UInt16
    ) throws(VirtqueueFault) -> Set<UInt16> {
        let settled = memory.load16(place.advanced(by: InflightLayout.usedIndex))
        let count = usedIndex &- settled
        guard count <= size else { throw .inflightIndex(area: settled, used: usedIndex) }
        var heads: Set<UInt16> = []
        var head = memory.load16(place.advanced(by: InflightLayout.lastBatchHead))
        for _ in 0..<count {
            guard head < size else { throw .inflightHead(head) }
            heads.insert(head)
            head = memory.load16(state(head, InflightLayout.stateNext))
        }
        return heads
    }

    /// Sorts heads by their numbers.
    private func order<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory, _ heads: [UInt16]
    ) -> Found {
        var counted: [(counter: UInt64, head: UInt16)] = []
        for head in heads {
            counted.append((memory.load64(state(head, InflightLayout.stateCounter)), head))
        }
        counted.sort { $0 > $1 }
        return Found(
            heads: counted.map(\.head), nextCounter: (counted.first?.counter ?? .max) &+ 1)
    }
}
