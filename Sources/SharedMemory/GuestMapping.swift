import CLinux
import Glibc
package import SystemLayer
package import VhostProtocol

/// A range of a shared memory file, mapped for reading and writing.
///
/// The file may shrink at any moment: see `isGone`.
@safe
package final class GuestMapping: Sendable {
    /// Address of the range's first byte in this process.
    package let place: GuestPlace
    /// Size of the range, in bytes.
    package let byteCount: UInt64
    /// What is mapped: from a page of the file's on.
    private let start: UInt
    private let mappedBytes: Int
    // Optional, so that it can go before the mapping does.
    // SAFETY: set in init and taken in deinit, when nobody else has the object; only read in between.
    private nonisolated(unsafe) var memoryGuard: MappingGuard?

    /// Maps `byteCount` bytes from `offset` of a memory file on; the descriptor may be closed then.
    ///
    /// EINVAL: the file is not in memory (tmpfs or hugetlbfs), where a load could wait for a disk or for
    /// another process, or it is too short; with `isFixed` also when it is not sealed against shrinking.
    package init(
        descriptor: Int32, offset: UInt64, byteCount: UInt64, isFixed: Bool = false
    ) throws(SystemFault) {
        let pageBytes = try Self.check(descriptor, end: offset + byteCount)
        if isFixed, nbdpull_cannot_shrink(descriptor) == 0 {
            throw SystemFault(call: "fcntl", errno: EINVAL)
        }
        let first = offset / pageBytes * pageBytes
        let bytes = (offset + byteCount - first + pageBytes - 1) / pageBytes * pageBytes
        guard let mappedBytes = Int(exactly: bytes) else {
            throw SystemFault(call: "mmap", errno: ENOMEM)
        }
        // SAFETY: a new mapping at an address that the kernel chooses; unmapped in deinit.
        let memory = unsafe mmap(
            nil, mappedBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, off_t(first))
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        // A dump of this process is not to hold a machine's memory.
        unsafe madvise(memory, mappedBytes, MADV_DONTDUMP)
        start = UInt(bitPattern: memory)
        self.mappedBytes = mappedBytes
        self.byteCount = byteCount
        place = GuestPlace(rawValue: UInt64(start) + (offset - first))
        do throws(SystemFault) {
            unsafe memoryGuard = try MappingGuard(start: start, byteCount: UInt(mappedBytes))
        } catch {
            unsafe munmap(memory, mappedBytes)
            throw error
        }
    }

    deinit {
        unsafe memoryGuard = nil
        // SAFETY: the mapping made in init; requests that touch it have ended, which its owner knows.
        unsafe munmap(UnsafeMutableRawPointer(bitPattern: start), mappedBytes)
    }

    /// Whether the file has shrunk under an access: zeros stand in place of the memory.
    // SAFETY: the guard is set in init and changed in deinit only.
    package var isGone: Bool { unsafe memoryGuard?.isGone ?? true }

    /// Mappings of this process that were lost so far: while the number stays, no mapping is gone that
    /// was not before.
    package static var losses: UInt { MappingGuard.losses }

    /// The size of the file's pages, in bytes.
    private static func check(_ descriptor: Int32, end: UInt64) throws(SystemFault) -> UInt64 {
        // First: what lies on another file system could make the next calls wait.
        guard nbdpull_is_memory(descriptor) != 0 else {
            throw SystemFault(call: "mmap", errno: EINVAL)
        }
        var facts = stat()
        // SAFETY: the kernel fills the locals.
        _ = try SystemFault.check("fstat") { unsafe fstat(descriptor, &facts) }
        var system = statfs()
        _ = try SystemFault.check("fstatfs") { unsafe fstatfs(descriptor, &system) }
        let type = Int(system.f_type)
        guard facts.st_mode & S_IFMT == S_IFREG,
            type == nbdpull_TMPFS_MAGIC || type == nbdpull_HUGETLBFS_MAGIC,
            facts.st_size >= 0, end <= UInt64(facts.st_size)
        else { throw SystemFault(call: "mmap", errno: EINVAL) }
        return type == nbdpull_HUGETLBFS_MAGIC ? UInt64(max(system.f_bsize, 4096)) : 4096
    }
}

/// Memory files of this server's own.
package enum FixedMemory {
    /// A file of zeros that can neither shrink nor grow.
    package static func make(byteCount: UInt64) throws(SystemFault) -> OwnedDescriptor {
        // SAFETY: the name is a constant.
        let number = try SystemFault.check("memfd_create") {
            unsafe nbdpull_memory_file("nbdpull-inflight")
        }
        let file = OwnedDescriptor(adopting: number)
        guard let size = off_t(exactly: byteCount) else {
            throw SystemFault(call: "ftruncate", errno: EFBIG)
        }
        _ = try SystemFault.check("ftruncate") { ftruncate(file.raw, size) }
        _ = try SystemFault.check("fcntl") { nbdpull_seal_size(file.raw) }
        return file
    }
}
