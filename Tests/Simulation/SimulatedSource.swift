import PointInTime

/// A disk's content as a few hot clusters at the beginning of each region of its write-intent log:
/// the rest is a hole that nobody touches.
package struct DiskShape: Hashable {
    package static let sectorBytes: UInt64 = 512
    package static let regionShift: UInt64 = 27
    /// Clusters at the beginning of each region that guests use.
    package static let hotClusters = 8
    package static let clusterSectors = 32
    package static let pageSectors = 8

    package var regions: Int
    /// Bytes of the last cluster that belong to the disk.
    package var tailBytes: UInt64

    package init(regions: Int, tailBytes: UInt64) {
        self.regions = regions
        self.tailBytes = tailBytes
    }

    package var sizeBytes: UInt64 {
        UInt64(regions - 1) << Self.regionShift
            + UInt64(Self.hotClusters - 1) << ClusterGeometry.shift + tailBytes
    }
    /// Sectors that are kept.
    package var sectorCount: Int { regions * Self.hotClusters * Self.clusterSectors }

    /// Where a byte's sector is kept; the byte lies in a hot cluster.
    package func index(of byte: UInt64) -> Int {
        let region = Int(byte >> Self.regionShift)
        let sector = Int((byte & (1 << Self.regionShift - 1)) / Self.sectorBytes)
        return region * Self.hotClusters * Self.clusterSectors + sector
    }

    package func indices(_ bytes: Range<UInt64>) -> Range<Int> {
        let first = index(of: bytes.lowerBound)
        return first..<first + Int((bytes.upperBound - bytes.lowerBound + 511) / 512)
    }

    /// The disk's byte that a kept sector begins with.
    package func byte(at index: Int) -> UInt64 {
        let perRegion = Self.hotClusters * Self.clusterSectors
        return UInt64(index / perRegion) << Self.regionShift
            + UInt64(index % perRegion) * Self.sectorBytes
    }

    /// Whether a kept sector lies within the disk.
    package func isInside(_ index: Int) -> Bool { byte(at: index) < sizeBytes }
}

/// What a sector holds: the number of the write that made it, 0 for zeros.
package typealias Stamp = UInt32

extension Stamp {
    /// What nobody may ever read: half of a sector, or scratch never written.
    package static let garbage: Stamp = .max
}

/// A disk under the server: a page cache over a device with a volatile cache.
package final class SimulatedSource {
    package private(set) var shape: DiskShape
    /// As everyone sees it.
    package private(set) var sectors: [Stamp]
    /// As it is after a loss of power.
    private var durable: [Stamp]
    /// How often each sector was written, as seen and as it is after a loss of power.
    package private(set) var versions: [UInt32]
    private var durableVersions: [UInt32]
    /// Pages of 4 KiB that are allocated.
    private var isData: [Bool]
    /// Sectors whose write-back is going to fail.
    private var doomed: Set<Int> = []
    /// Failed write-backs; what a witness sees, which forgets nothing.
    package private(set) var lostCount = 0
    /// Of these, the ones that each descriptor was told of: each is told once.
    private var toldCounts = [0, 0]
    private var lastVersion: UInt32 = 0
    /// A time of change that counts up.
    package private(set) var changed: UInt64 = 1
    /// Versions that guests may rely on after a loss of power.
    package var floors: [UInt32]

    package init(_ shape: DiskShape) {
        self.shape = shape
        let count = shape.sectorCount
        sectors = (0..<count).map { index in
            let cluster = index / DiskShape.clusterSectors
            return cluster % 3 == 2 || !shape.isInside(index) ? 0 : 1
        }
        durable = sectors
        versions = [UInt32](repeating: 0, count: count)
        durableVersions = versions
        floors = versions
        isData = stride(from: 0, to: count, by: DiskShape.pageSectors).map { [sectors] in
            sectors[$0] != 0
        }
    }

    // MARK: What guests and the server do

    /// Sectors get a stamp; the versions that they have then.
    package func write(_ stamp: Stamp, at indices: Range<Int>, isLost: Bool = false) {
        for index in indices { set(index, stamp, isLost) }
        for page in pages(indices) { isData[page] = true }
        changed += 1
    }

    package func write(_ stamps: ArraySlice<Stamp>, at first: Int, isLost: Bool = false) {
        for (offset, stamp) in stamps.enumerated() { set(first + offset, stamp, isLost) }
        for page in pages(first..<first + stamps.count) { isData[page] = true }
        changed += 1
    }

    /// Whole pages become holes.
    package func punch(_ indices: Range<Int>) {
        // What is a hole already does not change, whatever becomes of the power.
        for page in pages(indices) where isData[page] {
            let first = page * DiskShape.pageSectors
            for index in first..<first + DiskShape.pageSectors { set(index, 0, false) }
            isData[page] = false
        }
        changed += 1
    }

    private func set(_ index: Int, _ stamp: Stamp, _ isLost: Bool) {
        sectors[index] = stamp
        lastVersion += 1
        versions[index] = lastVersion
        if isLost { doomed.insert(index) } else { doomed.remove(index) }
    }

    private func pages(_ indices: Range<Int>) -> Range<Int> {
        indices.lowerBound
            / DiskShape.pageSectors..<(indices.upperBound + DiskShape.pageSectors - 1)
            / DiskShape.pageSectors
    }

    /// Where the run of data or holes that begins at a sector ends, at most at `end`.
    package func allocation(at index: Int, end: Int) -> (isData: Bool, end: Int) {
        let first = isData[index / DiskShape.pageSectors]
        var next = (index / DiskShape.pageSectors + 1) * DiskShape.pageSectors
        while next < end, isData[next / DiskShape.pageSectors] == first {
            next += DiskShape.pageSectors
        }
        return (first, min(next, end))
    }

    /// Whose descriptor it is.
    package enum User: Int { case guests, server }

    /// Writes back everything; false when something was lost that the descriptor was not told of.
    package func sync(by user: User) -> Bool {
        writeBack(Array(sectors.indices))
        defer { toldCounts[user.rawValue] = lostCount }
        return toldCounts[user.rawValue] == lostCount
    }

    /// Sectors go to the device, or are lost.
    package func writeBack(_ indices: [Int]) {
        for index in indices where versions[index] != durableVersions[index] {
            if doomed.contains(index) {
                // The page leaves the cache as if it were clean.
                sectors[index] = durable[index]
                versions[index] = durableVersions[index]
                if sectors[index] != 0 { isData[index / DiskShape.pageSectors] = true }
                lostCount += 1
            } else {
                durable[index] = sectors[index]
                durableVersions[index] = versions[index]
            }
        }
        doomed.subtract(indices)
    }

    /// Opened by another process: whether writes were lost that nobody was told of.
    ///
    /// Whoever opens next is told of them, and so is whoever syncs by what was opened then.
    package func reopen() -> Bool {
        let told = toldCounts.max() ?? 0
        toldCounts = [told, told]
        return told < lostCount
    }

    /// Of versions that guests know, those that did not get lost.
    package func kept(_ known: [UInt32]) -> [UInt32] {
        zip(known, durableVersions).map { min($0, $1) }
    }

    /// Writes that are in the cache are going to be lost; whether there were any.
    package func doom(_ draw: inout Draw) -> Bool {
        let dirty = sectors.indices.filter { versions[$0] != durableVersions[$0] }
        guard let first = draw.pick(dirty) else { return false }
        doomed.insert(first)
        for index in dirty where draw.chance(30) { doomed.insert(index) }
        return true
    }

    // MARK: What happens to it

    /// The power goes: of what was in the cache each sector is kept, lost, or torn.
    package func losePower(_ draw: inout Draw) {
        for index in sectors.indices where versions[index] != durableVersions[index] {
            switch draw.below(10) {
            case 0...3:
                durable[index] = sectors[index]
                durableVersions[index] = versions[index]
            case 4:
                durable[index] = .garbage
                durableVersions[index] = max(versions[index], durableVersions[index])
            default: break
            }
        }
        sectors = durable
        versions = durableVersions
        for index in sectors.indices where sectors[index] != 0 {
            isData[index / DiskShape.pageSectors] = true
        }
        doomed = []
    }

    /// The first sector that has lost what a guest was told is durable.
    package var brokenPromise: Int? { sectors.indices.first { durableVersions[$0] < floors[$0] } }

    /// The disk ends later within its last cluster; false when that is full.
    package func growTail(by bytes: UInt64) -> Bool {
        guard shape.tailBytes + bytes <= UInt64(ClusterGeometry.clusterBytes) else { return false }
        shape.tailBytes += bytes
        changed += 1
        return true
    }

    /// What was added last, and nobody has seen, is taken away again.
    package func takeTailBack(_ bytes: UInt64) {
        shape.tailBytes -= bytes
        changed += 1
    }

    /// The disk gets another region behind its last.
    package func grow() {
        shape.regions += 1
        let more = shape.sectorCount - sectors.count
        sectors += [Stamp](repeating: 0, count: more)
        durable += [Stamp](repeating: 0, count: more)
        versions += [UInt32](repeating: 0, count: more)
        durableVersions += [UInt32](repeating: 0, count: more)
        floors += [UInt32](repeating: 0, count: more)
        isData += [Bool](repeating: false, count: more / DiskShape.pageSectors)
        changed += 1
    }
}

/// Scratch of one disk in one job.
package final class SimulatedScratch {
    private var slots: [[Stamp]] = []
    /// A write-back has failed, for whoever asks.
    package private(set) var hasLost = false
    package private(set) var isGone = false

    package init() {}

    package func write(_ stamps: ArraySlice<Stamp>, slot: Int, from sector: Int) {
        while slots.count <= slot {
            slots.append([Stamp](repeating: .garbage, count: DiskShape.clusterSectors))
        }
        for (offset, stamp) in stamps.enumerated() { slots[slot][sector + offset] = stamp }
    }

    /// What bytes of it hold; garbage where nothing was written.
    package func read(at position: UInt64, count: Int) -> [Stamp] {
        (0..<(count + 511) / 512).map { offset in
            let sector = Int(position / 512) + offset
            let slot = sector / DiskShape.clusterSectors
            return isGone || slot >= slots.count
                ? .garbage : slots[slot][sector % DiskShape.clusterSectors]
        }
    }

    package var hasContent: Bool { !slots.isEmpty }

    package func lose() { hasLost = true }

    /// What was lost leaves the cache.
    package func evict() { slots = slots.map { $0.map { _ in .garbage } } }

    /// It is emptied, or belongs to somebody else.
    package func empty() { isGone = true }
}
