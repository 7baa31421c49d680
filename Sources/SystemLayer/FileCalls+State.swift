import CLinux
import Glibc
import Synchronization

/// Plain calls on the small files that must outlive the server.
extension FileCalls {
    /// Opens a file for reading and writing that is made, mode 0600, or emptied when it exists.
    package static func openEmptied(_ path: String) throws(SystemFault) -> OwnedDescriptor {
        let number = try SystemFault.check("open") {
            // SAFETY: the string is passed for the time of the call.
            unsafe Glibc.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        }
        return OwnedDescriptor(adopting: number)
    }

    /// Gives a file another name; a file of that name is replaced in one step.
    package static func rename(_ from: String, to: String) throws(SystemFault) {
        _ = try SystemFault.check("rename") {
            // SAFETY: the strings are passed for the time of the call.
            unsafe Glibc.rename(from, to)
        }
    }

    /// Removes an empty directory.
    package static func removeDirectory(_ path: String) throws(SystemFault) {
        _ = try SystemFault.check("rmdir") {
            // SAFETY: the string is passed for the time of the call.
            unsafe rmdir(path)
        }
    }

    /// Makes room for a file of this size, where the file system can; it reads as zeros.
    package static func reserve(_ descriptor: Int32, bytes: UInt64) throws(SystemFault) {
        do throws(SystemFault) {
            _ = try SystemFault.check("fallocate") {
                fallocate(descriptor, 0, 0, off_t(clamping: bytes))
            }
        } catch {
            guard error.errno == EOPNOTSUPP else { throw error }
            try setSize(descriptor, bytes: bytes)
        }
    }

    /// Up to `count` bytes from a position on; fewer at the file's end.
    package static func read(
        _ descriptor: Int32, at position: UInt64, count: Int
    ) throws(SystemFault) -> [UInt8] {
        var failure: Int32 = 0
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                // SAFETY: the range lies within the buffer.
                let result = unsafe pread(
                    descriptor, buffer.baseAddress.map { unsafe $0 + filled }, count - filled,
                    off_t(clamping: position) + off_t(filled))
                if result == 0 { return }
                if result < 0 {
                    if errno == EINTR { continue }
                    failure = errno
                    return
                }
                filled += result
            }
        }
        if failure != 0 { throw SystemFault(call: "pread", errno: failure) }
        return bytes
    }

    /// Writes a run of words to a file.
    package static func write(
        _ descriptor: Int32, _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        try words.write(descriptor, first: first, count: count, at: position)
    }

    /// An extended attribute of an open file; nil when it has none of that name, or cannot have
    /// any.
    package static func mark(
        _ descriptor: Int32, _ name: String
    ) throws(SystemFault) -> String? {
        var bytes = [UInt8](repeating: 0, count: markBytesMax)
        // SAFETY: the kernel writes at most as many bytes as the array has.
        let result = unsafe bytes.withUnsafeMutableBytes { buffer in
            unsafe nbdpull_get_mark(descriptor, name, buffer.baseAddress, buffer.count)
        }
        if result >= 0 { return String(decoding: bytes.prefix(result), as: UTF8.self) }
        switch errno {
        case ENODATA, EOPNOTSUPP, EPERM, ENOSYS: return nil
        default: throw SystemFault(call: "fgetxattr", errno: errno)
        }
    }

    /// When an open file, or what is said about it, was changed last, in nanoseconds since 1970 by
    /// this machine's clock; nil where another machine's clock says so, or for what is no regular
    /// file.
    package static func changeTime(_ descriptor: Int32) throws(SystemFault) -> UInt64? {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        _ = try SystemFault.check("fstat") { unsafe fstat(descriptor, &facts) }
        guard facts.st_mode & S_IFMT == S_IFREG else { return nil }
        if try isFarOff(descriptor) { return nil }
        return [facts.st_mtim, facts.st_ctim].map { time in
            UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
        }.max()
    }

    /// Whether the file's bytes may be kept by somebody who has to be asked, and may not answer; true
    /// where that cannot be told.
    package static func isFar(_ descriptor: Int32) -> Bool {
        do throws(SystemFault) { return try isFarOff(descriptor) } catch { return true }
    }

    private static func isFarOff(_ descriptor: Int32) throws(SystemFault) -> Bool {
        var system = statfs()
        // SAFETY: the kernel fills in the one structure that it is given.
        _ = try SystemFault.check("fstatfs") { unsafe fstatfs(descriptor, &system) }
        return farFileSystems.contains(UInt32(truncatingIfNeeded: system.f_type))
    }

    /// NFS, SMB, FUSE, Ceph, 9P, GFS2, OCFS2: times there may come from elsewhere, and later.
    private static let farFileSystems: Set<UInt32> = [
        0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x6573_5546, 0x00C3_6400, 0x0102_1997, 0x0116_1970,
        0x7461_636F,
    ]

    /// Sets an extended attribute of an open file.
    package static func setMark(
        _ descriptor: Int32, _ name: String, _ value: String
    ) throws(SystemFault) {
        let bytes = Array(value.utf8)
        _ = try SystemFault.check("fsetxattr") {
            // SAFETY: the kernel reads as many bytes as the array has.
            unsafe bytes.withUnsafeBytes { buffer in
                unsafe nbdpull_set_mark(descriptor, name, buffer.baseAddress, buffer.count)
            }
        }
    }

    /// Makes everything about the file durable, its attributes too.
    package static func syncWhole(_ descriptor: Int32) throws(SystemFault) {
        _ = try SystemFault.check("fsync") { fsync(descriptor) }
    }

    /// A longer attribute is not ours, in bytes.
    private static let markBytesMax = 256
}

/// A descriptor that is kept so that one can be had when none is left.
package final class SpareDescriptor: Sendable {
    /// -1 when even this one could not be had.
    private let number = Mutex<Int32>(-1)

    package init() { number.withLock { $0 = Self.any() } }

    deinit { number.withLock { if $0 >= 0 { close($0) } } }

    private static func any() -> Int32 {
        // SAFETY: the string is passed for the time of the call.
        unsafe Glibc.open("/dev/null", O_RDONLY | O_CLOEXEC)
    }

    /// Runs work while one descriptor more than usual is free.
    package func lend(_ body: () -> Void) {
        number.withLock { number in
            if number >= 0 { close(number) }
            number = -1
        }
        body()
        number.withLock { if $0 < 0 { $0 = Self.any() } }
    }
}

extension Errno {
    package static let notDirectory = ENOTDIR
    package static let busy = EBUSY
    package static let tooManyFilesInSystem = ENFILE
}
