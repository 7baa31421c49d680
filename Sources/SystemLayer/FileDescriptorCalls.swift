import CLinux
import Glibc

/// What a file descriptor names.
package enum FileType: Sendable, Hashable {
    case regular, blockDevice, directory, other
}

/// Plain calls on files that do not go through a ring.
package enum FileCalls {
    /// How a file is opened.
    package struct OpenOptions: OptionSet, Sendable {
        package let rawValue: Int32
        package init(rawValue: Int32) { self.rawValue = rawValue }
        package static let write = OpenOptions(rawValue: 1)
        package static let direct = OpenOptions(rawValue: 2)
        /// Create the file; it must not exist.
        ///
        /// Mode 0600.
        package static let createNew = OpenOptions(rawValue: 4)
        /// Fail with EBUSY when the block device is in use (mounted, or held by the kernel).
        package static let exclusiveDevice = OpenOptions(rawValue: 8)
    }

    /// Opens a file for reading, or for reading and writing.
    ///
    /// A pipe is opened at once, whether or not anybody writes to it.
    package static func open(
        _ path: String, _ options: OpenOptions
    ) throws(SystemFault) -> OwnedDescriptor {
        var flags = O_CLOEXEC | (options.contains(.write) ? O_RDWR : O_RDONLY)
        if options.contains(.direct) { flags |= nbdpull_O_DIRECT }
        if options.contains(.createNew) { flags |= O_CREAT | O_EXCL }
        if options.contains(.exclusiveDevice) { flags |= O_EXCL }
        if isPipe(path) { flags |= O_NONBLOCK }
        let number = try SystemFault.check("open") {
            // SAFETY: the string is passed for the time of the call.
            unsafe Glibc.open(path, flags, 0o600)
        }
        return OwnedDescriptor(adopting: number)
    }

    private static func isPipe(_ path: String) -> Bool {
        var facts = stat()
        // SAFETY: the kernel fills the local; the string is passed for the time of the call.
        return unsafe stat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFIFO
    }

    /// Opens the file behind a descriptor anew, with other options.
    ///
    /// Needs `/proc`.
    package static func reopen(
        _ descriptor: Int32, _ options: OpenOptions
    ) throws(SystemFault) -> OwnedDescriptor {
        try open("/proc/self/fd/\(descriptor)", options)
    }

    /// Reads of the descriptor are not noted as the file's last access, which spares a part of
    /// each.
    ///
    /// Only the file's owner can have that; for others nothing changes.
    package static func leaveAccessTime(_ descriptor: Int32) {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | noAccessTime)
    }

    /// `O_NOATIME`, which the overlay of the C library does not have.
    private static let noAccessTime: Int32 = 0o1_000_000

    /// Bytes of a page of the page cache.
    package static var pageBytes: Int { Int(sysconf(Int32(_SC_PAGESIZE))) }

    /// The kind of file and, for a regular file, its size in bytes.
    package static func facts(
        _ descriptor: Int32
    ) throws(SystemFault) -> (type: FileType, sizeBytes: UInt64) {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        _ = try SystemFault.check("fstat") { unsafe fstat(descriptor, &facts) }
        switch facts.st_mode & S_IFMT {
        case S_IFREG:
            // Where a file system says something negative the size is beyond every limit.
            return (.regular, UInt64(bitPattern: Int64(facts.st_size)))
        case S_IFBLK: return (.blockDevice, try blockDeviceBytes(descriptor))
        case S_IFDIR: return (.directory, 0)
        default: return (.other, 0)
        }
    }

    private static func blockDeviceBytes(_ descriptor: Int32) throws(SystemFault) -> UInt64 {
        var size: UInt64 = 0
        // SAFETY: BLKGETSIZE64 stores eight bytes into an eight-byte local.
        _ = try SystemFault.check("ioctl BLKGETSIZE64") {
            unsafe nbdpull_ioctl_size(descriptor, nbdpull_BLKGETSIZE64, &size)
        }
        return size
    }

    /// The alignment that O_DIRECT needs of offsets, lengths and memory.
    ///
    /// Bytes, a power of two.
    package static func directAlignment(_ descriptor: Int32, type: FileType) -> Int {
        if type == .blockDevice {
            var sector: Int32 = 0
            // SAFETY: BLKSSZGET stores an int into an int.
            let result = unsafe nbdpull_ioctl_int(descriptor, nbdpull_BLKSSZGET, &sector)
            return result == 0 && sector > 0 ? Int(sector) : 4096
        }
        let alignment = Int(nbdpull_direct_alignment(descriptor))
        return alignment > 0 ? alignment : 4096
    }

    /// Whether the file lies wholly in memory (tmpfs), so that a plain read never waits for a
    /// device.
    package static func isMemoryBacked(_ descriptor: Int32) -> Bool {
        var facts = statfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        return unsafe fstatfs(descriptor, &facts) == 0
            && Int(facts.f_type) == nbdpull_TMPFS_MAGIC
    }

    /// How much can be asked about where a regular file has holes.
    package enum HoleKnowledge: Sendable, Hashable {
        /// Nothing that can be believed.
        case none
        /// A single place, by `seek`.
        case places
        /// Also many extents at once, and what lies between them is a hole.
        case extents
    }

    /// What the file's holes can be asked by.
    ///
    /// Files on ext4 are kept as extents. Those in the older form of ext2 and ext3, which share its
    /// magic number, are not: on Linux 6.18 `lseek` calls it a hole where bytes wait in the page
    /// cache for their first block. Files whose bytes lie in the inode are counted among these.
    package static func holeKnowledge(_ descriptor: Int32) -> HoleKnowledge {
        var facts = statfs()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        guard unsafe fstatfs(descriptor, &facts) == 0,
            Int(facts.f_type) == nbdpull_EXT4_SUPER_MAGIC
        else { return .places }
        var flags: UInt64 = 0
        // SAFETY: FS_IOC_GETFLAGS stores four or eight bytes into an eight-byte local.
        let result = unsafe nbdpull_ioctl_size(descriptor, nbdpull_FS_IOC_GETFLAGS, &flags)
        return result == 0 && flags & UInt64(nbdpull_EXT4_EXTENTS_FL) != 0 ? .extents : .none
    }

    /// Makes a regular file the given size.
    package static func setSize(_ descriptor: Int32, bytes: UInt64) throws(SystemFault) {
        _ = try SystemFault.check("ftruncate") { ftruncate(descriptor, off_t(bytes)) }
    }

    /// Removes a file's name; a name that is gone already is fine.
    package static func remove(_ path: String) throws(SystemFault) {
        do throws(SystemFault) {
            _ = try SystemFault.check("unlink") {
                // SAFETY: the string is passed for the time of the call.
                unsafe unlink(path)
            }
        } catch {
            if error.errno != ENOENT { throw error }
        }
    }

    /// Whether something has this name.
    package static func exists(_ path: String) -> Bool {
        // SAFETY: the string is passed for the time of the call.
        unsafe access(path, F_OK) == 0
    }

    /// Makes everything written so far durable.
    package static func sync(_ descriptor: Int32) throws(SystemFault) {
        _ = try SystemFault.check("fdatasync") { fdatasync(descriptor) }
    }

    /// Writes bytes at a position, all of them.
    package static func write(
        _ descriptor: Int32, _ bytes: [UInt8], at position: UInt64
    ) throws(SystemFault) {
        var done = 0
        while done < bytes.count {
            let start = done
            // SAFETY: the range lies within the array, which the call borrows.
            let result = unsafe bytes.withUnsafeBytes { buffer in
                unsafe pwrite(
                    descriptor, buffer.baseAddress.map { unsafe $0 + start },
                    bytes.count - start, off_t(position) + off_t(start))
            }
            if result < 0 {
                if errno == EINTR { continue }
                throw SystemFault(call: "pwrite", errno: errno)
            }
            done += result
        }
    }

    /// Reads up to `count` bytes from the file's start; fewer when it is shorter.
    package static func readAll(
        _ descriptor: Int32, count: Int
    ) throws(SystemFault) -> [UInt8] {
        try read(descriptor, at: 0, count: count)
    }

    /// What tells one file from another that later has its name, and one content from the next.
    package static func identity(
        _ descriptor: Int32
    ) throws(SystemFault) -> (inode: UInt64, changedNanoseconds: UInt64) {
        var facts = stat()
        // SAFETY: the kernel fills the local; it keeps no pointer.
        _ = try SystemFault.check("fstat") { unsafe fstat(descriptor, &facts) }
        // Not the time of the content, which anybody may set: a file that was changed and got its
        // old time back would look as if nobody had touched it. It is only compared, so it may be
        // any number.
        let time = facts.st_ctim
        let seconds = UInt64(truncatingIfNeeded: time.tv_sec) &* 1_000_000_000
        return (
            UInt64(facts.st_ino), seconds &+ UInt64(truncatingIfNeeded: time.tv_nsec)
        )
    }

    /// The first offset at or after `position` that holds data (`data`) or a hole; nil when there
    /// is none before the end.
    package static func seek(
        _ descriptor: Int32, from position: UInt64, data: Bool
    ) throws(SystemFault) -> UInt64? {
        let found = lseek(
            descriptor, off_t(position), data ? nbdpull_SEEK_DATA : nbdpull_SEEK_HOLE)
        if found >= 0 { return UInt64(found) }
        if errno == ENXIO { return nil }
        throw SystemFault(call: "lseek", errno: errno)
    }
}

/// errno values that the layers above act on.
package enum Errno {
    package static let again = EAGAIN
    package static let notSupported = EOPNOTSUPP
    package static let notImplemented = ENOSYS
    package static let noLocks = ENOLCK
    package static let invalid = EINVAL
    package static let badMessage = EBADMSG
    package static let badDescriptor = EBADF
    package static let io = EIO
    package static let badAddress = EFAULT
    package static let noSpace = ENOSPC
    package static let quota = EDQUOT
    package static let fileTooBig = EFBIG
    package static let canceled = ECANCELED
    package static let accessDenied = EACCES
    package static let exists = EEXIST
    package static let notFound = ENOENT
    package static let nameTooLong = ENAMETOOLONG
    package static let addressInUse = EADDRINUSE
    package static let interrupted = EINTR
    package static let tooManyFiles = EMFILE
    package static let noMemory = ENOMEM
    package static let connectionAborted = ECONNABORTED
    package static let connectionRefused = ECONNREFUSED
}
