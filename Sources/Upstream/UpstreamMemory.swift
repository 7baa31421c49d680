import Glibc

/// Memory for bytes of changes that are kept, and of operations on a guest's memory: runs of a page
/// and more, which are used again.
// SAFETY: one ring's thread uses it; a run is named by its address as a number, which is handed out
// once.
@safe
struct UpstreamMemory: ~Copyable {
    /// Most bytes of one run.
    static let bytesMax = 1 << 20
    /// Bytes of runs that are kept for later.
    private static let spareBytesMax = 16 << 20
    private static let smallest = 4096

    /// By size: a page, two, four and so on.
    private var spare: [[UInt]] = []
    private var spareBytes = 0

    deinit {
        for run in spare.joined() { Self.free(run) }
    }

    /// Gives back what nobody uses.
    mutating func removeAll() {
        for run in spare.joined() { Self.free(run) }
        spare.removeAll()
        spareBytes = 0
    }

    private static func sizeClass(_ count: Int) -> Int {
        let pages = max(1, (count + smallest - 1) / smallest)
        return pages == 1 ? 0 : Int.bitWidth - (pages - 1).leadingZeroBitCount
    }

    private static func free(_ address: UInt) {
        // SAFETY: a run of `take` that nobody uses.
        unsafe UnsafeMutableRawPointer(bitPattern: address)?.deallocate()
    }

    /// The address of a run for so many bytes.
    mutating func take(_ count: Int) -> UInt {
        let size = Self.sizeClass(count)
        while spare.count <= size { spare.append([]) }
        if let run = spare[size].popLast() {
            spareBytes -= Self.smallest << size
            return run
        }
        // SAFETY: a run of its own, freed in `give` or with the rest.
        let run = UnsafeMutableRawPointer.allocate(
            byteCount: Self.smallest << size, alignment: Self.smallest)
        return UInt(bitPattern: run)
    }

    /// Gives a run back that was taken for so many bytes.
    mutating func give(_ address: UInt, _ count: Int) {
        let size = Self.sizeClass(count)
        while spare.count <= size { spare.append([]) }
        let bytes = Self.smallest << size
        guard spareBytes + bytes <= Self.spareBytesMax else { return Self.free(address) }
        spareBytes += bytes
        spare[size].append(address)
    }

    /// Copies between two runs of memory that both live.
    static func copy(from source: UInt, to target: UInt, count: Int) {
        guard let from = unsafe UnsafeRawPointer(bitPattern: source),
            let to = unsafe UnsafeMutableRawPointer(bitPattern: target)
        else { return }
        // SAFETY: the asker keeps the source until it is told; the target was taken for so many
        // bytes.
        unsafe _ = memcpy(to, from, count)
    }
}
