import VhostClient
import VhostProtocol

/// Guest memory that is arrays: each access is checked, and any may have a side effect.
final class GuestArray: GuestMemory, DriverMemory {
    private struct Region {
        let start: UInt64
        var bytes: [UInt8]
        /// Whether guest addresses reach it.
        let isGuest: Bool
    }

    private var regions: [Region] = []
    /// Accesses to what no check has allowed.
    private(set) var strays = 0
    /// Times that an address was looked up.
    private(set) var lookups = 0
    /// Stores that still reach memory; the process ends with the last one.
    var storesLeft = Int.max
    /// Called before each access of the device.
    var onAccess: (() -> Void)?

    /// One region from address zero.
    convenience init(_ byteCount: Int) { self.init([(0, byteCount)]) }

    init(_ parts: [(start: UInt64, byteCount: Int)]) {
        for part in parts {
            regions.append(
                Region(
                    start: part.start, bytes: Array(repeating: 0, count: part.byteCount),
                    isGuest: true))
        }
    }

    /// Memory that is not the guest's: an in-flight area.
    func addArea(_ byteCount: Int) -> GuestPlace {
        regions.append(
            Region(start: 0, bytes: Array(repeating: 0, count: byteCount), isGuest: false))
        return GuestPlace(rawValue: UInt64(regions.count) << 40)
    }

    // MARK: As the device sees it

    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment? {
        lookups += 1
        for (index, region) in regions.enumerated() where region.isGuest {
            guard address >= region.start, address - region.start < UInt64(region.bytes.count)
            else { continue }
            let offset = address - region.start
            return GuestSegment(
                place: GuestPlace(rawValue: UInt64(index + 1) << 40 + offset),
                byteCount: min(byteCount, UInt64(region.bytes.count) - offset))
        }
        return nil
    }

    /// Whether so many bytes may be touched there.
    func contains(_ segment: GuestSegment) -> Bool {
        let index = Int(segment.place.rawValue >> 40) - 1
        guard regions.indices.contains(index) else { return false }
        let offset = segment.place.rawValue & (1 << 40 - 1)
        let count = UInt64(regions[index].bytes.count)
        return offset <= count && segment.byteCount <= count - offset
    }

    private func load(_ place: GuestPlace, _ count: Int) -> UInt64 {
        onAccess?()
        return peek(place, count)
    }

    private func peek(_ place: GuestPlace, _ count: Int) -> UInt64 {
        guard contains(GuestSegment(place: place, byteCount: UInt64(count))) else {
            strays += 1
            return 0
        }
        let offset = Int(place.rawValue & (1 << 40 - 1))
        let bytes = regions[Int(place.rawValue >> 40) - 1].bytes
        return (0..<count).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64(8 * $1) }
    }

    private func store(_ value: UInt64, _ place: GuestPlace, _ count: Int) {
        onAccess?()
        guard contains(GuestSegment(place: place, byteCount: UInt64(count))) else {
            strays += 1
            return
        }
        guard storesLeft > 0 else { return }
        storesLeft -= 1
        let offset = Int(place.rawValue & (1 << 40 - 1))
        for index in 0..<count {
            regions[Int(place.rawValue >> 40) - 1].bytes[offset + index] =
                UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
        }
    }

    private func expectAligned(_ place: GuestPlace, _ count: UInt64) {
        if !place.rawValue.isMultiple(of: count) { strays += 1 }
    }

    func load8(_ place: GuestPlace) -> UInt8 { UInt8(load(place, 1)) }
    func load16(_ place: GuestPlace) -> UInt16 {
        expectAligned(place, 2)
        return UInt16(load(place, 2))
    }
    func load64(_ place: GuestPlace) -> UInt64 {
        expectAligned(place, 8)
        return load(place, 8)
    }
    func loadPair(_ place: GuestPlace) -> GuestWords {
        GuestWords(first: load(place, 8), second: peek(place.advanced(by: 8), 8))
    }
    func store8(_ value: UInt8, _ place: GuestPlace) { store(UInt64(value), place, 1) }
    func store16(_ value: UInt16, _ place: GuestPlace) {
        expectAligned(place, 2)
        store(UInt64(value), place, 2)
    }
    func store32(_ value: UInt32, _ place: GuestPlace) {
        expectAligned(place, 4)
        store(UInt64(value), place, 4)
    }
    func store64(_ value: UInt64, _ place: GuestPlace) {
        expectAligned(place, 8)
        store(value, place, 8)
    }
    func fence() { onAccess?() }

    /// The bytes of segments, behind each other.
    func gather(_ segments: [GuestSegment]) -> [UInt8] {
        segments.flatMap { segment in
            (0..<segment.byteCount).map { UInt8(peek(segment.place.advanced(by: $0), 1)) }
        }
    }

    /// Puts bytes into segments.
    func scatter(_ bytes: [UInt8], _ segments: [GuestSegment]) {
        var next = 0
        for segment in segments {
            for offset in 0..<segment.byteCount {
                store(UInt64(bytes[next]), segment.place.advanced(by: offset), 1)
                next += 1
            }
        }
    }

    // MARK: As the driver sees it

    func read(_ address: UInt64, _ count: Int) -> [UInt8] {
        guard let found = segment(at: address, byteCount: UInt64(count)) else { return [] }
        return gather([found])
    }

    func write(_ bytes: [UInt8], _ address: UInt64) {
        let found = regions.firstIndex {
            $0.isGuest && address >= $0.start
                && address - $0.start + UInt64(bytes.count) <= UInt64($0.bytes.count)
        }
        guard let found else {
            strays += 1
            return
        }
        let offset = Int(address - regions[found].start)
        regions[found].bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }
}

extension QueueSetup {
    /// A queue whose rings are where a driver has put them.
    init(
        _ driver: DriverQueue, base: UInt16 = 0, hasIndirect: Bool = true
    ) {
        self.init(
            size: driver.size, base: base,
            rings: RingAddresses(
                descriptors: driver.descriptors, available: driver.available, used: driver.used),
            hasEventIndex: driver.hasEventIndex, hasIndirectDescriptors: hasIndirect)
    }
}
