/// A table of fixed capacity whose slots are found by number and reused.
///
/// Nothing is allocated after `init`. The data path goes through tables for every field it touches,
/// so they are compiled for what they hold. For that they are public and inlinable: the compiler
/// hands the bodies of `package` functions to no other module.
@safe
@frozen
public struct SlotTable<Element: ~Copyable>: ~Copyable {
    /// Names a slot of a table of such elements, so that a connection's is never taken for a
    /// disk's.
    @frozen
    public struct Index: Hashable, Sendable, BitwiseCopyable {
        @usableFromInline let stored: Int32

        /// The slot's number, from 0.
        @inlinable public var number: Int { Int(stored) }

        /// The slot of a number that was an index's, as it comes back from the kernel or from parts
        /// that do not know this table.
        @inlinable public init(_ number: Int) { stored = Int32(truncatingIfNeeded: number) }
    }

    public let capacity: Int
    /// Occupied slots.
    @inlinable public var count: Int { capacity - freeCount }
    @usableFromInline let elements: UnsafeMutablePointer<Element>
    @usableFromInline let occupied: UnsafeMutablePointer<Bool>
    @usableFromInline let free: UnsafeMutablePointer<Int32>
    @usableFromInline var freeCount: Int

    @inlinable public init(capacity: Int) {
        precondition(capacity > 0 && capacity < 1 << 24, "slot numbers have 24 bits")
        self.capacity = capacity
        // SAFETY: each block holds `capacity` elements and lives until deinit; every access below
        // checks its index.
        unsafe elements = .allocate(capacity: capacity)
        unsafe occupied = .allocate(capacity: capacity)
        unsafe free = .allocate(capacity: capacity)
        unsafe occupied.initialize(repeating: false, count: capacity)
        // The lowest slots are handed out first: they stay warm in the cache.
        for index in 0..<capacity { unsafe free[index] = Int32(capacity - 1 - index) }
        freeCount = capacity
    }

    @inlinable deinit {
        // SAFETY: exactly the occupied slots hold an initialized element.
        for index in 0..<capacity where unsafe occupied[index] {
            unsafe (elements + index).deinitialize(count: 1)
        }
        unsafe elements.deallocate()
        unsafe occupied.deallocate()
        unsafe free.deallocate()
    }

    /// Whether `insert` would find no room.
    @inlinable public var isFull: Bool { freeCount == 0 }

    /// Every slot, occupied or not: ask `contains`.
    @inlinable public var indices: SlotIndices<Element> { SlotIndices(count: capacity) }

    /// Puts an element into a free slot; the table must not be full.
    @inlinable public mutating func insert(_ element: consuming Element) -> Index {
        precondition(freeCount > 0, "slot table is full: ask isFull first")
        freeCount -= 1
        // SAFETY: freeCount was positive; the stack holds only numbers of free slots in range.
        let number = Int(unsafe free[freeCount])
        unsafe (elements + number).initialize(to: element)
        unsafe occupied[number] = true
        return Index(number)
    }

    /// Takes the element out and frees its slot.
    @inlinable @discardableResult
    public mutating func remove(_ index: Index) -> Element {
        precondition(contains(index), "slot is not occupied")
        // SAFETY: the slot is occupied, so an initialized element is there; it is marked free at
        // once.
        let element = unsafe (elements + index.number).move()
        unsafe occupied[index.number] = false
        unsafe free[freeCount] = Int32(index.number)
        freeCount += 1
        return element
    }

    /// Whether the slot holds an element.
    @inlinable public func contains(_ index: Index) -> Bool {
        // SAFETY: the number is checked first.
        index.number >= 0 && index.number < capacity && (unsafe occupied[index.number])
    }

    public subscript(_ index: Index) -> Element {
        // SAFETY: contains() proves that an initialized element is at the index.
        @inlinable _read {
            precondition(contains(index), "slot is not occupied")
            yield unsafe elements[index.number]
        }
        @inlinable _modify {
            precondition(contains(index), "slot is not occupied")
            yield unsafe &elements[index.number]
        }
    }
}

/// The slots of a table, in order.
@frozen
public struct SlotIndices<Element: ~Copyable>: Sequence, IteratorProtocol {
    @usableFromInline var position = 0
    @usableFromInline let count: Int

    @inlinable init(count: Int) { self.count = count }

    @inlinable public mutating func next() -> SlotTable<Element>.Index? {
        guard position < count else { return nil }
        defer { position += 1 }
        return SlotTable<Element>.Index(position)
    }
}
