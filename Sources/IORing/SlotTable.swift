/// A table of fixed capacity whose slots are found by number and reused.
///
/// Nothing is allocated after `init`. A slot's generation grows each time it is freed, so that a
/// completion that arrives late for a former tenant can be told apart.
@safe
package struct SlotTable<Element: ~Copyable>: ~Copyable {
    package let capacity: Int
    /// Occupied slots.
    package private(set) var count = 0
    private let elements: UnsafeMutablePointer<Element>
    private let occupied: UnsafeMutablePointer<Bool>
    private let generations: UnsafeMutablePointer<UInt16>
    private let free: UnsafeMutablePointer<Int32>
    private var freeCount: Int

    package init(capacity: Int) {
        precondition(capacity > 0 && capacity < 1 << 24, "slot numbers have 24 bits")
        self.capacity = capacity
        // SAFETY: each block holds `capacity` elements and lives until deinit; every access below
        // checks its index.
        unsafe elements = .allocate(capacity: capacity)
        unsafe occupied = .allocate(capacity: capacity)
        unsafe generations = .allocate(capacity: capacity)
        unsafe free = .allocate(capacity: capacity)
        unsafe occupied.initialize(repeating: false, count: capacity)
        unsafe generations.initialize(repeating: 0, count: capacity)
        // The lowest slots are handed out first: they stay warm in the cache.
        for index in 0..<capacity { unsafe free[index] = Int32(capacity - 1 - index) }
        freeCount = capacity
    }

    deinit {
        // SAFETY: exactly the occupied slots hold an initialized element.
        for index in 0..<capacity where unsafe occupied[index] {
            unsafe (elements + index).deinitialize(count: 1)
        }
        unsafe elements.deallocate()
        unsafe occupied.deallocate()
        unsafe generations.deallocate()
        unsafe free.deallocate()
    }

    /// Whether `insert` would find no room.
    package var isFull: Bool { freeCount == 0 }

    /// Puts an element into a free slot; the table must not be full.
    package mutating func insert(_ element: consuming Element) -> Int {
        precondition(freeCount > 0, "slot table is full: ask isFull first")
        freeCount -= 1
        // SAFETY: freeCount was positive; the stack holds only numbers of free slots in range.
        let index = Int(unsafe free[freeCount])
        unsafe (elements + index).initialize(to: element)
        unsafe occupied[index] = true
        count += 1
        return index
    }

    /// Takes the element out and frees its slot.
    @discardableResult
    package mutating func remove(_ index: Int) -> Element {
        precondition(contains(index), "slot is not occupied")
        // SAFETY: the slot is occupied, so an initialized element is there; it is marked free at
        // once.
        let element = unsafe (elements + index).move()
        unsafe occupied[index] = false
        unsafe generations[index] &+= 1
        unsafe free[freeCount] = Int32(index)
        freeCount += 1
        count -= 1
        return element
    }

    /// Whether the slot holds an element.
    package func contains(_ index: Int) -> Bool {
        // SAFETY: the index is checked first.
        index >= 0 && index < capacity && (unsafe occupied[index])
    }

    /// The generation of the slot's present (or next) tenant.
    package func generation(_ index: Int) -> UInt16 {
        precondition(index >= 0 && index < capacity)
        // SAFETY: checked above.
        return unsafe generations[index]
    }

    package subscript(_ index: Int) -> Element {
        // SAFETY: contains() proves that an initialized element is at the index.
        _read {
            precondition(contains(index), "slot is not occupied")
            yield unsafe elements[index]
        }
        _modify {
            precondition(contains(index), "slot is not occupied")
            yield unsafe &elements[index]
        }
    }
}
