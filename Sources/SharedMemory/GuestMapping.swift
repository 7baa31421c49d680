import CLinux
import Glibc
import Synchronization
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
    private let budget: MappingBudget?
    private let isUnmapped = Atomic<Bool>(false)
    /// Of the file's pages, in bytes.
    private let pageBytes: Int
    /// How much is unmapped with one call, in bytes: a millisecond's work.
    private static let unmappedAtOnce = 16 << 20
    // Optional, so that it can go before the mapping does.
    // SAFETY: set in init and taken once, when nobody uses the mapping any more; only read in
    // between.
    private nonisolated(unsafe) var memoryGuard: MappingGuard?

    /// Maps `byteCount` bytes from `offset` of a memory file on; the descriptor may be closed then.
    ///
    /// `budget` has them already; it gets them back when the mapping goes, or does not come about.
    /// Refused: a file that is not in memory (tmpfs or hugetlbfs), where a load could wait for a
    /// disk or for another process, or one that is too short; with `isFixed` also one that is not
    /// sealed against shrinking.
    package init(
        descriptor: Int32, offset: UInt64, byteCount: UInt64, isFixed: Bool = false,
        budget: MappingBudget? = nil
    ) throws(MappingRefusal) {
        do throws(MappingRefusal) {
            let pageBytes = try Self.check(descriptor, end: offset + byteCount)
            if isFixed, nbdpull_cannot_shrink(descriptor) == 0 {
                throw MappingRefusal("its file is not sealed against shrinking (F_SEAL_SHRINK)")
            }
            let first = offset / pageBytes * pageBytes
            let bytes = (offset + byteCount - first + pageBytes - 1) / pageBytes * pageBytes
            guard let mappedBytes = Int(exactly: bytes) else {
                throw MappingRefusal("it cannot be mapped: \(SystemFault.text(for: ENOMEM))")
            }
            // SAFETY: a new mapping at an address that the kernel chooses; unmapped in `unmap`.
            let memory = unsafe mmap(
                nil, mappedBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, off_t(first))
            guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
                throw MappingRefusal("it cannot be mapped: \(SystemFault.text(for: errno))")
            }
            // A dump of this process is not to hold a machine's memory.
            unsafe madvise(memory, mappedBytes, MADV_DONTDUMP)
            let start = UInt(bitPattern: memory)
            let made: MappingGuard
            do throws(SystemFault) {
                made = try MappingGuard(
                    start: start, byteCount: UInt(mappedBytes), pageBytes: UInt(pageBytes))
            } catch {
                unsafe munmap(memory, mappedBytes)
                throw MappingRefusal(
                    "there is no room for one more region in the table of the handler for SIGBUS")
            }
            unsafe memoryGuard = consume made
            self.start = start
            self.mappedBytes = mappedBytes
            self.pageBytes = Int(pageBytes)
            self.byteCount = byteCount
            self.budget = budget
            place = GuestPlace(rawValue: UInt64(start) + (offset - first))
        } catch {
            budget?.give(byteCount)
            throw error
        }
    }

    deinit { unmap() }

    /// Unmaps the memory, which may take seconds; nothing of it may be touched any more.
    package func unmap() {
        guard !isUnmapped.exchange(true, ordering: .acquiringAndReleasing) else { return }
        unsafe memoryGuard = nil
        // All at once, it would keep every other thread from its next mapping until it is through.
        var first = start
        var left = mappedBytes
        while left > 0 {
            var count = min(left, max(Self.unmappedAtOnce, pageBytes))
            // SAFETY: a part of the mapping made in init; requests that touch it have ended, which
            // its owner knows.
            if unsafe munmap(UnsafeMutableRawPointer(bitPattern: first), count) != 0 {
                count = left
                unsafe munmap(UnsafeMutableRawPointer(bitPattern: first), count)
            }
            first += UInt(count)
            left -= count
        }
        budget?.give(byteCount)
    }

    /// Whether the file has shrunk under an access: zeros stand in place of the memory.
    // SAFETY: the guard is set in init and taken when nobody asks any more.
    package var isGone: Bool { unsafe memoryGuard?.isGone ?? true }

    /// Mappings of this process that were lost so far: while the number stays, no mapping is gone
    /// that was not before.
    package static var losses: UInt { MappingGuard.losses }

    /// The size of the file's pages, in bytes.
    private static func check(
        _ descriptor: Int32, end: UInt64
    ) throws(MappingRefusal) -> UInt64 {
        // First: what lies on another file system could make the next calls wait.
        guard nbdpull_is_memory(descriptor) != 0 else { throw .notInMemory }
        var facts = stat()
        var system = statfs()
        // SAFETY: the kernel fills the locals.
        guard unsafe fstat(descriptor, &facts) == 0, unsafe fstatfs(descriptor, &system) == 0 else {
            throw MappingRefusal("its file has no size: \(SystemFault.text(for: errno))")
        }
        let type = Int(system.f_type)
        guard facts.st_mode & S_IFMT == S_IFREG,
            type == nbdpull_TMPFS_MAGIC || type == nbdpull_HUGETLBFS_MAGIC
        else { throw .notInMemory }
        guard facts.st_size >= 0, end <= UInt64(facts.st_size) else {
            throw MappingRefusal(
                "its file has \(facts.st_size) bytes, and it would end at byte \(end)")
        }
        return type == nbdpull_HUGETLBFS_MAGIC ? UInt64(max(system.f_bsize, 4096)) : 4096
    }
}

extension MappingRefusal {
    fileprivate static let notInMemory = MappingRefusal(
        "its descriptor is no file in memory: share memory from tmpfs, a memfd or huge pages")
}

/// Memory files of this server's own.
package enum FixedMemory {
    /// A file of zeros that can neither shrink nor grow.
    ///
    /// `name` is seen in /proc.
    package static func make(
        byteCount: UInt64, name: String = "nbdpull-inflight"
    ) throws(SystemFault) -> OwnedDescriptor {
        // SAFETY: the name lives for the call.
        let number = try SystemFault.check("memfd_create") {
            unsafe nbdpull_memory_file(name)
        }
        let file = OwnedDescriptor(adopting: number)
        guard let size = off_t(exactly: byteCount) else {
            throw SystemFault(call: "ftruncate", errno: EFBIG)
        }
        _ = try SystemFault.check("ftruncate") { ftruncate(file.raw, size) }
        _ = try SystemFault.check("fcntl") { nbdpull_seal_size(file.raw) }
        return file
    }

    /// Gives pages of such a file back, whoever has them mapped: they are zeros from now on.
    package static func giveBack(_ file: Int32, from start: Int, count: Int) {
        let mode = nbdpull_FALLOC_FL_PUNCH_HOLE | nbdpull_FALLOC_FL_KEEP_SIZE
        // Where that fails they stay.
        _ = fallocate(file, mode, off_t(start), off_t(count))
    }
}
