public import Synchronization
public import VhostProtocol

/// A guest's memory as this process has mapped it.
///
/// Loads and stores are the processor's own, so a hostile guest changes what is read at any moment,
/// and memory may go away: `isGone`. Public and inlinable for the virtqueue's sake, which is
/// compiled for it.
@safe
@frozen
public struct MappedMemory: GuestMemory, ~Copyable {
    /// A region, in guest addresses and where it lies here.
    @frozen
    @usableFromInline
    struct Region: BitwiseCopyable {
        @usableFromInline let guest: UInt64
        @usableFromInline let byteCount: UInt64
        @usableFromInline let base: UInt64

        @inlinable init(guest: UInt64, byteCount: UInt64, base: UInt64) {
            self.guest = guest
            self.byteCount = byteCount
            self.base = base
        }
    }

    /// By guest address.
    @usableFromInline var regions: [Region] = []
    @usableFromInline var mappings: MappingList

    /// No memory.
    package init() { mappings = MappingList() }

    /// Puts mappings in, and takes others out, which it returns for somebody to unmap.
    ///
    /// Nothing in flight may touch those any more.
    package mutating func change(
        added: [(region: MappedRegion, mapping: GuestMapping)], removed: [MemorySlot]
    ) -> [GuestMapping] {
        let out = mappings.entries.filter { removed.contains($0.slot) }.map(\.mapping)
        mappings.entries.removeAll { removed.contains($0.slot) }
        for (region, mapping) in added {
            mappings.entries.append(
                MappingList.Entry(
                    slot: region.slot, guest: region.region.guestAddress, mapping: mapping))
        }
        mappings.entries.sort { $0.guest < $1.guest }
        regions = mappings.entries.map {
            Region(
                guest: $0.guest, byteCount: $0.mapping.byteCount,
                base: $0.mapping.place.rawValue)
        }
        return out
    }

    /// All mappings, which are somebody else's to unmap from now on.
    package mutating func takeAll() -> [GuestMapping] {
        change(added: [], removed: mappings.entries.map(\.slot))
    }

    /// What a change is to the budget of all.
    package func wish(
        adding added: [MappedRegion], removing removed: [MemorySlot]
    ) -> MappingBudget.Wish {
        var wish = MappingBudget.Wish()
        for entry in mappings.entries {
            wish.has(entry.mapping.byteCount, stays: !removed.contains(entry.slot))
        }
        for region in added { wish.wants(region.region.byteCount) }
        return wish
    }

    /// Whether some of the memory is gone.
    package var isGone: Bool { mappings.entries.contains { $0.mapping.isGone } }

    @inlinable
    public func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment? {
        // The last region that begins at or before the address.
        var low = 0
        var high = regions.count
        while low < high {
            let middle = (low + high) / 2
            if regions[middle].guest <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0, byteCount > 0 else { return nil }
        let region = regions[low - 1]
        let offset = address - region.guest
        guard offset < region.byteCount else { return nil }
        return GuestSegment(
            place: GuestPlace(rawValue: region.base + offset),
            byteCount: min(byteCount, region.byteCount - offset))
    }

    // SAFETY (all loads and stores): a place is one that `segment` has returned for a mapping that
    // is there, or one within a mapping of an in-flight area; the session drops its queues before
    // either.

    @inlinable @unsafe
    func atomic<Value: AtomicRepresentable>(
        _ place: GuestPlace, as _: Value.Type
    ) -> UnsafeMutablePointer<Atomic<Value>> {
        let address = unsafe UnsafeMutableRawPointer(bitPattern: UInt(place.rawValue))
        guard let address = unsafe address else {
            preconditionFailure("no place of a mapping is zero")
        }
        return unsafe address.assumingMemoryBound(to: Atomic<Value>.self)
    }

    @inlinable
    public func load8(_ place: GuestPlace) -> UInt8 {
        unsafe atomic(place, as: UInt8.self).pointee.load(ordering: .acquiring)
    }

    @inlinable
    public func load16(_ place: GuestPlace) -> UInt16 {
        unsafe atomic(place, as: UInt16.self).pointee.load(ordering: .acquiring)
    }

    @inlinable
    public func load64(_ place: GuestPlace) -> UInt64 {
        unsafe atomic(place, as: UInt64.self).pointee.load(ordering: .acquiring)
    }

    @inlinable
    public func loadPair(_ place: GuestPlace) -> GuestWords {
        let address = unsafe UnsafeRawPointer(bitPattern: UInt(place.rawValue))
        guard let address = unsafe address else {
            preconditionFailure("no place of a mapping is zero")
        }
        // Each once: the result is a value, and only it is checked.
        return GuestWords(
            first: unsafe address.loadUnaligned(as: UInt64.self),
            second: unsafe (address + 8).loadUnaligned(as: UInt64.self))
    }

    // SAFETY: as above.

    @inlinable
    public func store8(_ value: UInt8, _ place: GuestPlace) {
        unsafe atomic(place, as: UInt8.self).pointee.store(value, ordering: .releasing)
    }

    @inlinable
    public func store16(_ value: UInt16, _ place: GuestPlace) {
        unsafe atomic(place, as: UInt16.self).pointee.store(value, ordering: .releasing)
    }

    @inlinable
    public func store32(_ value: UInt32, _ place: GuestPlace) {
        unsafe atomic(place, as: UInt32.self).pointee.store(value, ordering: .releasing)
    }

    @inlinable
    public func store64(_ value: UInt64, _ place: GuestPlace) {
        unsafe atomic(place, as: UInt64.self).pointee.store(value, ordering: .releasing)
    }

    @inlinable
    public func fence() { atomicMemoryFence(ordering: .sequentiallyConsistent) }
}

/// The mappings of a guest's memory.
@usableFromInline
struct MappingList {
    struct Entry {
        let slot: MemorySlot
        let guest: UInt64
        let mapping: GuestMapping
    }
    var entries: [Entry] = []
}
