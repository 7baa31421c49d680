// The memory that a guest shares: regions, each mapped from a descriptor.

/// A region as the front-end describes it, unchecked (vhost-user, "Memory regions description").
package struct MemoryRegion: Equatable, Sendable, BitwiseCopyable {
    /// Guest physical address.
    package var guestAddress: UInt64
    /// Size in bytes.
    package var byteCount: UInt64
    /// Address in the front-end.
    package var userAddress: UInt64
    /// Offset in its file, in bytes.
    package var fileOffset: UInt64

    /// A region with the given fields.
    package init(
        guestAddress: UInt64, byteCount: UInt64, userAddress: UInt64, fileOffset: UInt64
    ) {
        self.guestAddress = guestAddress
        self.byteCount = byteCount
        self.userAddress = userAddress
        self.fileOffset = fileOffset
    }

    /// Whether REM_MEM_REG means this region; the file offset does not count.
    func isNamed(by other: MemoryRegion) -> Bool {
        guestAddress == other.guestAddress && byteCount == other.byteCount
            && userAddress == other.userAddress
    }
}

/// Identifies a region for the length of the session; numbers are not reused.
package struct MemorySlot: Hashable, Sendable, BitwiseCopyable {
    package let number: UInt32
}

/// Why memory is refused.
package enum MemoryRefusal: Error, Equatable, Sendable, BitwiseCopyable {
    /// A region of no bytes.
    case empty
    /// An address, size or offset that is no multiple of `VhostLimits.pageBytes`.
    case notAligned(MemoryRegion)
    /// A region that ends beyond the last address or the largest file offset.
    case endsBeyondAddresses(MemoryRegion)
    /// Two regions share a guest address.
    case overlaps(guestAddress: UInt64)
    /// More than `VhostLimits.regionsMax`.
    case tooManyRegions
    /// More than `VhostLimits.memoryBytesMax` in all.
    case tooMuchMemory
    /// REM_MEM_REG for an unknown region.
    case unknownRegion(MemoryRegion)
    /// The change would move or remove the rings of a started queue.
    case ringsInUse(queue: Int)

    /// One line for a log: what was wrong, and with which value.
    package var text: String {
        switch self {
        case .empty: "a region of memory has no bytes"
        case .notAligned(let region): "memory \(region.text) is not aligned to 4096 bytes"
        case .endsBeyondAddresses(let region): "memory \(region.text) has no end"
        case .overlaps(let address):
            "two regions of memory hold the guest's address 0x\(String(address, radix: 16))"
        case .tooManyRegions: "more than \(VhostLimits.regionsMax) regions of memory"
        case .tooMuchMemory: "more than \(VhostLimits.memoryBytesMax >> 40) TiB of memory"
        case .unknownRegion(let region): "memory \(region.text) is not there to be removed"
        case .ringsInUse(let queue): "the rings of queue \(queue), which runs, would move"
        }
    }
}

extension MemoryRegion {
    /// Where in the guest's memory it lies, for logs.
    package var text: String {
        "at 0x\(String(guestAddress, radix: 16)) of \(byteCount) bytes"
    }
}

/// The regions of one guest.
///
/// Guest addresses never overlap, and no sum over a region can overflow. Front-end addresses may
/// overlap, because a guest may see the same memory twice; the region with the lowest guest address
/// wins.
package struct MemoryTable: Equatable, Sendable {
    /// A checked region.
    package struct Entry: Equatable, Sendable, BitwiseCopyable {
        package let slot: MemorySlot
        package let region: MemoryRegion
    }

    /// All regions, by guest address.
    package private(set) var entries: [Entry] = []
    private var nextSlot: UInt32 = 0

    /// A guest without memory.
    package init() {}

    /// Replaces all regions.
    ///
    /// Returns the new slots in the order of `regions`.
    mutating func replace(with regions: [MemoryRegion]) throws(MemoryRefusal) -> [MemorySlot] {
        var table = self
        table.entries = []
        var slots: [MemorySlot] = []
        for region in regions { slots.append(try table.add(region)) }
        self = table
        return slots
    }

    /// Adds one region.
    mutating func add(_ region: MemoryRegion) throws(MemoryRefusal) -> MemorySlot {
        try Self.check(region)
        guard entries.count < VhostLimits.regionsMax else { throw .tooManyRegions }
        let total = entries.reduce(0) { $0 + $1.region.byteCount }
        guard total <= VhostLimits.memoryBytesMax - region.byteCount else { throw .tooMuchMemory }
        let place =
            entries.firstIndex { $0.region.guestAddress > region.guestAddress } ?? entries.count
        if place > 0, entries[place - 1].region.guestEnd > region.guestAddress {
            throw .overlaps(guestAddress: region.guestAddress)
        }
        if place < entries.count, region.guestEnd > entries[place].region.guestAddress {
            throw .overlaps(guestAddress: entries[place].region.guestAddress)
        }
        let slot = MemorySlot(number: nextSlot)
        nextSlot &+= 1
        entries.insert(Entry(slot: slot, region: region), at: place)
        return slot
    }

    /// Removes one region.
    mutating func remove(_ region: MemoryRegion) throws(MemoryRefusal) -> MemorySlot {
        guard let place = entries.firstIndex(where: { $0.region.isNamed(by: region) }) else {
            throw .unknownRegion(region)
        }
        return entries.remove(at: place).slot
    }

    /// Removes all regions.
    mutating func removeAll() -> [MemorySlot] {
        let slots = entries.map(\.slot)
        entries = []
        return slots
    }

    /// The guest address of a range at `userAddress` in the front-end; nil unless one region holds
    /// all of it.
    func guestAddress(ofUser userAddress: UInt64, byteCount: UInt64) -> UInt64? {
        for entry in entries {
            let region = entry.region
            guard userAddress >= region.userAddress else { continue }
            let offset = userAddress - region.userAddress
            guard offset < region.byteCount, byteCount <= region.byteCount - offset else {
                continue
            }
            return region.guestAddress + offset
        }
        return nil
    }

    private static func check(_ region: MemoryRegion) throws(MemoryRefusal) {
        guard region.byteCount > 0 else { throw .empty }
        let all =
            region.guestAddress | region.byteCount | region.userAddress | region.fileOffset
        guard all.isMultiple(of: VhostLimits.pageBytes) else { throw .notAligned(region) }
        guard region.byteCount <= VhostLimits.memoryBytesMax else { throw .tooMuchMemory }
        let room = UInt64(Int64.max) - region.byteCount
        guard region.guestAddress <= .max - region.byteCount,
            region.userAddress <= .max - region.byteCount, region.fileOffset <= room
        else { throw .endsBeyondAddresses(region) }
    }
}

extension MemoryRegion {
    /// End of the guest addresses; only for a checked region.
    fileprivate var guestEnd: UInt64 { guestAddress + byteCount }
}
