import CFrontEnd
import Glibc
import Synchronization
import VhostClient

/// A guest's memory: a file in memory that is mapped here, and by whoever gets its descriptor.
///
/// Places are offsets from its start, which is the guest's address zero.
@safe package final class SharedMemory: DriverMemory {
    package let descriptor: Descriptor
    package let byteCount: Int
    /// Mapped for as long as this object lives; a page aligned address.
    private let base: UnsafeMutableRawPointer

    package init(bytes: Int, isSealed: Bool = true) throws {
        byteCount = bytes
        descriptor = try Descriptor(
            front_end_memory_file(UInt64(bytes), isSealed ? 1 : 0), from: "memfd_create")
        // SAFETY: a new mapping; the result is checked.
        let mapped = unsafe mmap(
            nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.number, 0)
        guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
            throw ClientViolation("mmap of \(bytes) bytes: errno \(errno)")
        }
        unsafe base = mapped
    }

    // SAFETY: whoever uses `base` keeps this object.
    deinit { unsafe munmap(base, byteCount) }

    /// Takes memory away from all that have mapped it.
    ///
    /// Nothing behind the new end may be touched here.
    package func shrink(to bytes: Int) throws {
        guard ftruncate(descriptor.number, bytes) == 0 else {
            throw ClientViolation("ftruncate: errno \(errno)")
        }
    }

    /// Where the memory is mapped, for who looks after its lifetime himself.
    package var startAddress: UInt { unsafe UInt(bitPattern: base) }

    private func check(_ address: UInt64, _ count: Int) {
        precondition(
            address <= UInt64(byteCount) && count <= byteCount - Int(address), "outside memory")
    }

    package func read(_ address: UInt64, _ count: Int) -> [UInt8] {
        check(address, count)
        if count == 2, address.isMultiple(of: 2) { return little(load16(address)) }
        // SAFETY (both): the range was checked against the mapping, the array has the count.
        return unsafe [UInt8](unsafeUninitializedCapacity: count) { room, filled in
            if let start = room.baseAddress {
                unsafe memcpy(start, base + Int(address), count)
            }
            filled = count
        }
    }

    package func write(_ bytes: [UInt8], _ address: UInt64) {
        check(address, bytes.count)
        if bytes.count == 2, address.isMultiple(of: 2) {
            return store16(number(bytes, 0, as: UInt16.self), address)
        }
        unsafe bytes.withUnsafeBytes { from in
            if let start = from.baseAddress {
                unsafe memcpy(base + Int(address), start, bytes.count)
            }
        }
    }

    /// A word that both sides use: nothing that follows is done before it is read.
    private func load16(_ address: UInt64) -> UInt16 {
        // SAFETY: the range was checked, the address is even, and an atomic number is its bytes.
        let word = unsafe (base + Int(address)).assumingMemoryBound(to: Atomic<UInt16>.self)
        return unsafe word.pointee.load(ordering: .acquiring)
    }

    /// The same: whatever was written before is there when it is seen.
    private func store16(_ value: UInt16, _ address: UInt64) {
        // SAFETY: as in `load16`.
        let word = unsafe (base + Int(address)).assumingMemoryBound(to: Atomic<UInt16>.self)
        unsafe word.pointee.store(value, ordering: .releasing)
    }

    package func fence() { atomicMemoryFence(ordering: .sequentiallyConsistent) }
}
