import CLinux
import Disk
import Glibc
import ServerInterface
import SystemLayer

/// A raw file or block device that is written.
///
/// Its descriptor is open from before the first write until the end, so that `flush` hears of every
/// write that was lost meanwhile, whoever made it.
final class RawTarget: Sendable {
    private let descriptor: Int32
    private let path: String
    private let isBlock: Bool
    private let isNew: Bool
    let room: TargetRoom

    /// A lock that another worker has is waited for so long: it has been killed and ends in a
    /// moment.
    private static let lockNanoseconds: UInt64 = 5_000_000_000

    /// Opens what the order names; of a raw target it takes the locks, which qemu and this server
    /// know.
    init(_ order: PushOrder) throws(PushFailure) {
        path = order.path
        isBlock = order.kind == .block
        isNew = order.isNew
        var flags = O_RDWR | O_CLOEXEC
        // Of a device it asks for nobody else to have it; of our own file, that it is no link.
        if isBlock { flags |= O_EXCL } else if order.isNew { flags |= O_NOFOLLOW }
        descriptor = try Self.open(path, flags)
        room = TargetRoom(order, descriptor: descriptor)
        var facts = stat()
        // SAFETY: the kernel fills the local during the call.
        guard unsafe fstat(descriptor, &facts) == 0 else { throw .call("fstat", path) }
        let format = facts.st_mode & S_IFMT
        guard format == (isBlock ? S_IFBLK : S_IFREG) else {
            throw PushFailure("'\(path)' is no \(isBlock ? "block device" : "regular file")")
        }
        // A device is known by its number, under whatever name.
        let found =
            isBlock
            ? (device: UInt64(facts.st_rdev), inode: 0)
            : (device: UInt64(facts.st_dev), inode: UInt64(facts.st_ino))
        guard order.device.map({ $0 == found.device }) ?? true,
            order.inode.map({ $0 == found.inode }) ?? true
        else { throw PushFailure("'\(path)' is another file by now") }
        // The program that writes an image takes the same locks.
        if order.format == .raw { try Self.lock(descriptor, path) }
    }

    // A device that another worker has, which was killed, is its own until the kernel has ended it.
    private static func open(_ path: String, _ flags: Int32) throws(PushFailure) -> Int32 {
        do throws(SystemFault) {
            return try InUse.outwait(
                nanoseconds: lockNanoseconds,
                while: { (fault: SystemFault) in fault.errno == EBUSY }
            ) { () throws(SystemFault) in
                // SAFETY: the string is passed for the time of the call.
                try SystemFault.check("open") { unsafe Glibc.open(path, flags) }
            }
        } catch {
            throw .call("open", path, error.errno)
        }
    }

    private static func lock(_ descriptor: Int32, _ path: String) throws(PushFailure) {
        do throws(SourceFault) {
            try InUse.outwait(
                nanoseconds: lockNanoseconds,
                while: { (fault: SourceFault) in if case .inUse = fault { true } else { false } }
            ) { () throws(SourceFault) in try SourceLock.acquire(descriptor, forWriting: true) }
        } catch {
            if case .inUse(let detail, _) = error { throw PushFailure("'\(path)': \(detail)") }
            if SourceLock.isMissing(error) { return }
            throw PushFailure("'\(path)' cannot be locked: \(error)")
        }
    }

    deinit { if descriptor >= 0 { _ = close(descriptor) } }

    /// For programs that work on this very file.
    var forPrograms: ProgramFile { ProgramFile(descriptor: descriptor, path: path) }

    /// Takes the locks that an image's program takes otherwise; they last as long as the answer.
    func lockApart() throws(PushFailure) -> FileLock {
        let apart = try Self.open("/proc/self/fd/\(descriptor)", O_RDWR | O_CLOEXEC)
        let lock = FileLock(descriptor: apart)
        try Self.lock(apart, path)
        return lock
    }

    /// Gives the room of a file back that was made for the backup.
    func empty() {
        // A shorter one may be all that the storage lets us have.
        if isNew { _ = ftruncate(descriptor, 0) }
    }

    /// Makes it fit for the raw content of a disk; what is ours already has zeros only.
    func fit(_ order: PushOrder) throws(PushFailure) {
        let size = order.sizeBytes
        if isBlock {
            var room: UInt64 = 0
            // SAFETY: the kernel fills the local during the call.
            guard unsafe nbdpull_ioctl_size(descriptor, nbdpull_BLKGETSIZE64, &room) == 0 else {
                throw .call("ioctl", path)
            }
            guard room >= size else {
                throw PushFailure("'\(path)' has \(room) bytes, and the disk \(size)")
            }
            return
        }
        if order.isNew {
            guard ftruncate(descriptor, 0) == 0, ftruncate(descriptor, off_t(clamping: size)) == 0
            else { throw .call("ftruncate", path) }
            return
        }
        var facts = stat()
        // SAFETY: the kernel fills the local during the call.
        guard unsafe fstat(descriptor, &facts) == 0 else { throw .call("fstat", path) }
        guard UInt64(clamping: facts.st_size) == size else {
            throw PushFailure("'\(path)' has \(facts.st_size) bytes, and the disk \(size)")
        }
    }

    func write(_ memory: UnsafeRawBufferPointer, at offset: UInt64) throws(PushFailure) {
        try whole(memory.count, "write", ends: "nothing was written") { done in
            // SAFETY: what is left of the memory, which the caller keeps.
            unsafe pwrite(
                descriptor, memory.baseAddress?.advanced(by: done), memory.count - done,
                off_t(clamping: offset + UInt64(done)))
        }
    }

    func read(_ memory: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(PushFailure) {
        try whole(memory.count, "read", ends: "it ends too early") { done in
            // SAFETY: what is left of the memory, which the caller keeps.
            unsafe pread(
                descriptor, memory.baseAddress?.advanced(by: done), memory.count - done,
                off_t(clamping: offset + UInt64(done)))
        }
    }

    // Until all bytes are done, however few a call does.
    private func whole(
        _ bytes: Int, _ call: String, ends: String, _ some: (_ done: Int) -> Int
    ) throws(PushFailure) {
        var done = 0
        while done < bytes {
            let count = some(done)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw .call(call, path) }
            guard count > 0 else { throw PushFailure("'\(path)': \(call): \(ends)") }
            done += count
        }
    }

    /// Makes a range read as zeros, without writing them where that is possible.
    func zero(at offset: UInt64, count: Int) throws(PushFailure) {
        let (start, length) = (off_t(clamping: offset), off_t(count))
        for mode in [nbdpull_FALLOC_FL_PUNCH_HOLE, nbdpull_FALLOC_FL_ZERO_RANGE] {
            if fallocate(descriptor, mode | nbdpull_FALLOC_FL_KEEP_SIZE, start, length) == 0 {
                return
            }
            guard [EOPNOTSUPP, EINVAL, EINTR, ENOSYS].contains(errno) else {
                throw .call("fallocate", path)
            }
        }
        let zeros = [UInt8](repeating: 0, count: min(count, 1 << 20))
        var done = 0
        while done < count {
            let part = min(zeros.count, count - done)
            // SAFETY: bytes have no form that could be wrong.
            let memory = unsafe zeros.span.bytes
            try unsafe memory.withUnsafeBytes { bytes throws(PushFailure) in
                // SAFETY: a part of the live array.
                let some = unsafe UnsafeRawBufferPointer(rebasing: bytes[..<part])
                try unsafe write(some, at: offset + UInt64(done))
            }
            done += part
        }
    }

    /// Begins to write a range back, so that the last flush has less to do.
    func beginWriteback(at offset: UInt64, count: Int) {
        _ = sync_file_range(
            descriptor, off_t(clamping: offset), off_t(count), 2 /* SYNC_FILE_RANGE_WRITE */)
    }

    /// Makes everything durable that anybody has written; throws when something of it was lost.
    func flush() throws(PushFailure) {
        guard fsync(descriptor) == 0 else { throw .call("fsync", path) }
    }

    /// Lets go of cached pages, so that what is read next comes from the storage.
    func forgetCache() { _ = posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) }
}

/// Locks of an open file, until it is let go of.
final class FileLock: Sendable {
    private let descriptor: Int32
    init(descriptor: Int32) { self.descriptor = descriptor }
    deinit { if descriptor >= 0 { _ = close(descriptor) } }
}
