import CDispatch
import Foundation
import Glibc

/// The few system calls that Foundation does not offer; the only unsafe code of this module's state
/// and front.
package enum SystemCalls {
    /// A failed call: its name and errno.
    package struct Failure: Error, Sendable, Hashable {
        package let call: String
        package let number: Int32

        /// `CALL: strerror's text`.
        package var text: String { "\(call): \(SystemCalls.errorText(number))" }
        /// Whether another process holds the lock.
        package var wouldBlock: Bool { number == EWOULDBLOCK }
        /// Whether the name was there already.
        package var alreadyExists: Bool { number == EEXIST }
        /// Of a bind: the machine does not have the address, another program has it, or it is not
        /// for this user.
        package var hasNoAddress: Bool { number == EADDRNOTAVAIL }
        package var isTaken: Bool { number == EADDRINUSE }
        package var isForbidden: Bool { number == EACCES }
        /// Whether somebody else has the device for himself.
        package var isBusy: Bool { number == EBUSY }
        /// Whether there is no such file.
        package var notFound: Bool { number == ENOENT }
    }

    /// Keeps libdispatch out of the system's log: it says for each user that he may not raise priorities.
    package static func quietDispatch() {
        // SAFETY: Both strings live through the call; there is no second thread yet.
        _ = unsafe setenv("LIBDISPATCH_LOG", "NO", 0)
    }

    /// A descriptor that is closed exactly once.
    package struct Descriptor: ~Copyable, Sendable {
        package let raw: Int32
        init(adopting raw: Int32) { self.raw = raw }
        deinit { _ = close(raw) }
    }

    /// As much of a file's type as is asked for.
    package enum FileKind: Sendable, Hashable {
        case regular
        case socket
        case other
    }

    /// What identifies a file on this machine until it is removed.
    package struct FileIdentity: Sendable, Hashable, Codable {
        package var device: UInt64
        package var inode: UInt64
        package init(device: UInt64, inode: UInt64) {
            self.device = device
            self.inode = inode
        }
    }

    /// strerror's text for an errno.
    package static func errorText(_ number: Int32) -> String {
        // SAFETY: strerror returns a NUL-terminated string that lives at least until the thread's
        // next call; it is copied at once.
        guard let text = unsafe strerror(number) else { return "error \(number)" }
        return unsafe String(cString: text)
    }

    /// Opens `path`; `mode` counts when the flags create it.
    ///
    /// Always close-on-exec.
    package static func open(
        _ path: String, flags: Int32, mode: UInt32 = 0o600
    ) throws(Failure) -> Descriptor {
        // SAFETY: the string is NUL-terminated and lives for the call.
        let raw = unsafe Glibc.open(path, flags | O_CLOEXEC, mode)
        guard raw >= 0 else { throw Failure(call: "open", number: errno) }
        return Descriptor(adopting: raw)
    }

    /// Takes the exclusive lock on an open file without waiting.
    ///
    /// Released when the descriptor is closed.
    package static func lockExclusively(_ descriptor: borrowing Descriptor) throws(Failure) {
        guard flock(descriptor.raw, LOCK_EX | LOCK_NB) == 0 else {
            throw Failure(call: "flock", number: errno)
        }
    }

    /// Releases the lock before the descriptor is closed.
    package static func unlock(_ descriptor: borrowing Descriptor) {
        _ = flock(descriptor.raw, LOCK_UN)
    }

    /// Writes all bytes and makes them durable.
    package static func writeDurably(
        _ bytes: [UInt8], to descriptor: borrowing Descriptor
    ) throws(Failure) {
        var offset = 0
        while offset < bytes.count {
            // SAFETY: base address and count describe the live slice.
            let written = unsafe bytes[offset...].withUnsafeBytes { buffer in
                unsafe Glibc.write(descriptor.raw, buffer.baseAddress, buffer.count)
            }
            if written < 0 && errno == EINTR { continue }
            guard written > 0 else { throw Failure(call: "write", number: errno) }
            offset += written
        }
        guard fsync(descriptor.raw) == 0 else { throw Failure(call: "fsync", number: errno) }
    }

    /// Takes everything out of a file.
    package static func empty(_ descriptor: borrowing Descriptor) throws(Failure) {
        guard ftruncate(descriptor.raw, 0) == 0 else {
            throw Failure(call: "ftruncate", number: errno)
        }
    }

    /// Makes a directory's entries durable.
    package static func syncDirectory(_ path: String) throws(Failure) {
        let descriptor = try open(path, flags: O_RDONLY | O_DIRECTORY)
        guard fsync(descriptor.raw) == 0 else { throw Failure(call: "fsync", number: errno) }
    }

    /// Replaces `target` by `source` in one step.
    package static func rename(_ source: String, to target: String) throws(Failure) {
        // SAFETY: both strings are NUL-terminated and live for the call.
        guard unsafe Glibc.rename(source, target) == 0 else {
            throw Failure(call: "rename", number: errno)
        }
    }

    /// Gives a file another name, which nobody has yet.
    package static func renameToNew(_ source: String, _ target: String) throws(Failure) {
        // SAFETY: the strings are NUL-terminated and live for the call. A link replaces nothing.
        if unsafe link(source, target) == 0 {
            try unlink(source)
            return
        }
        guard [EPERM, ENOSYS, EOPNOTSUPP, EMLINK].contains(errno) else {
            throw Failure(call: "link", number: errno)
        }
        // A file system that has no links.
        guard identity(of: target) == nil else { throw Failure(call: "rename", number: EEXIST) }
        try rename(source, to: target)
    }

    /// Makes an empty file of a name that nobody has yet, 0600.
    package static func createNew(_ path: String) throws(Failure) -> FileIdentity {
        let descriptor = try open(path, flags: O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)
        var found = stat()
        // SAFETY: the kernel fills the local during the call.
        guard unsafe fstat(descriptor.raw, &found) == 0 else {
            throw Failure(call: "fstat", number: errno)
        }
        return FileIdentity(device: UInt64(found.st_dev), inode: UInt64(found.st_ino))
    }

    /// The user that the process runs as.
    package static var userID: UInt32 { geteuid() }

    /// Owner and mode of what a path leads to, links followed; nil if it leads nowhere.
    package static func trustFacts(of path: String) -> DirectoryTrust.Facts? {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        guard unsafe stat(path, &found) == 0 else { return nil }
        return DirectoryTrust.Facts(owner: found.st_uid, mode: found.st_mode)
    }

    /// Removes a name; false when there was none.
    @discardableResult
    package static func unlink(_ path: String) throws(Failure) -> Bool {
        // SAFETY: the string is NUL-terminated and lives for the call.
        if unsafe Glibc.unlink(path) == 0 { return true }
        guard errno == ENOENT else { throw Failure(call: "unlink", number: errno) }
        return false
    }

    /// Removes a directory when it is empty, and leaves it when it is not.
    package static func removeEmptyDirectory(_ path: String) {
        // SAFETY: the string is NUL-terminated and lives for the call.
        _ = unsafe rmdir(path)
    }

    /// What a name refers to now (symbolic links are not followed), or nil if it does not exist.
    package static func identity(of path: String) -> (identity: FileIdentity, kind: FileKind)? {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        guard unsafe lstat(path, &found) == 0 else { return nil }
        return identity(found)
    }

    /// The same, where it matters that the file system may not be able to say: nil only when
    /// nothing of that name exists.
    package static func existing(
        _ path: String
    ) throws(Failure) -> (identity: FileIdentity, kind: FileKind)? {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        if unsafe lstat(path, &found) == 0 { return identity(found) }
        guard [ENOENT, ENOTDIR].contains(errno) else {
            throw Failure(call: "lstat", number: errno)
        }
        return nil
    }

    private static func identity(_ found: stat) -> (identity: FileIdentity, kind: FileKind) {
        let kind: FileKind =
            switch found.st_mode & S_IFMT {
            case S_IFREG: .regular
            case S_IFSOCK: .socket
            default: .other
            }
        return (FileIdentity(device: UInt64(found.st_dev), inode: UInt64(found.st_ino)), kind)
    }

    /// The bytes of a file, up to so many.
    package static func read(_ path: String, upTo limit: Int) throws(Failure) -> [UInt8] {
        let file = try open(path, flags: O_RDONLY | O_NONBLOCK)
        var bytes: [UInt8] = []
        var room = [UInt8](repeating: 0, count: min(limit, 16 << 10))
        while bytes.count < limit {
            let wanted = min(room.count, limit - bytes.count)
            // SAFETY: the array is passed with no more than its size.
            let got = unsafe Glibc.read(file.raw, &room, wanted)
            if got < 0 && errno == EINTR { continue }
            guard got >= 0 else { throw Failure(call: "read", number: errno) }
            guard got > 0 else { break }
            bytes += room[..<got]
        }
        return bytes
    }

    /// How long a file is and how much room its blocks take, or nil if that cannot be found out;
    /// symbolic links are followed.
    package static func room(of path: String) -> (sizeBytes: UInt64, allocatedBytes: UInt64)? {
        var found = stat()
        // SAFETY: the string is NUL-terminated, and both live for the call.
        guard unsafe stat(path, &found) == 0 else { return nil }
        return (
            UInt64(clamping: found.st_size), UInt64(clamping: found.st_blocks) * 512
        )
    }

    /// Whether somebody accepts connections on a unix stream socket.
    package static func isListening(unixPath: String) -> Bool {
        // SAFETY: the closure is given an initialised address and its length.
        unsafe withUnixAddress(unixPath, type: Int32(SOCK_STREAM.rawValue)) {
            descriptor, address, size in
            unsafe connect(descriptor, address, size) == 0
        } ?? false
    }

    /// Names the time since the machine was started; empty when that is not known.
    package static var bootID: String {
        guard let handle = FileHandle(forReadingAtPath: "/proc/sys/kernel/random/boot_id") else {
            return ""
        }
        defer { try? handle.close() }
        let data = (try? handle.read(upToCount: 36)) ?? nil
        return String(decoding: data ?? Data(), as: UTF8.self)
    }

    /// Nanoseconds since the machine was started, time that it slept included.
    package static var nanosecondsSinceBoot: UInt64 {
        var time = timespec()
        // SAFETY: the kernel fills the local during the call only.
        unsafe clock_gettime(CLOCK_BOOTTIME, &time)
        return UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
    }

    /// The effective user's number.
    package static var effectiveUser: UInt32 { geteuid() }

    /// The number of a group, or nil if there is no group of that name.
    package static func group(named name: String) -> UInt32? {
        var entry = unsafe Glibc.group()
        var room = [CChar](repeating: 0, count: 64 << 10)
        var found: UnsafeMutablePointer<Glibc.group>?
        // SAFETY: the result points into `room`, which outlives every use of it.
        return unsafe room.withUnsafeMutableBufferPointer { buffer in
            guard unsafe getgrnam_r(name, &entry, buffer.baseAddress, buffer.count, &found) == 0,
                let found = unsafe found
            else { return nil }
            return unsafe found.pointee.gr_gid
        }
    }

    /// Gives a directory to a group that may pass through it.
    package static func letThrough(group: UInt32, path: String) throws(Failure) {
        // SAFETY: the path is passed for the time of each call. uid -1: as it is.
        guard unsafe chown(path, uid_t.max, group) == 0 else {
            throw Failure(call: "chown", number: errno)
        }
        guard unsafe chmod(path, 0o710) == 0 else {
            throw Failure(call: "chmod", number: errno)
        }
    }

    /// Gives a file to a group, if one is named, and sets its permission bits.
    package static func permit(_ path: String, mode: UInt32, group: UInt32?) throws(Failure) {
        if let group {
            // SAFETY: the path is passed for the time of the call. uid -1: as it is.
            guard unsafe chown(path, uid_t.max, group) == 0 else {
                throw Failure(call: "chown", number: errno)
            }
        }
        // SAFETY: the same.
        guard unsafe chmod(path, mode) == 0 else { throw Failure(call: "chmod", number: errno) }
    }

    /// Makes files of this process private to its user from now on.
    package static func makeNewFilesPrivate() { _ = umask(0o077) }

    private static func withUnixAddress(
        _ path: String, type: Int32,
        _ body: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Bool
    ) -> Bool? {
        var bytes = Array(path.utf8)
        var address = sockaddr_un()
        let room = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < room else { return nil }
        let isAbstract = bytes[0] == UInt8(ascii: "@")
        if isAbstract { bytes[0] = 0 }
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY: the length was checked against the field's size above.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        let raw = socket(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard raw >= 0 else { return nil }
        let descriptor = Descriptor(adopting: raw)
        let head = MemoryLayout<sockaddr_un>.size - room
        let size = socklen_t(head + bytes.count + (isAbstract ? 0 : 1))
        // SAFETY: sockaddr_un begins with sockaddr's fields; the callee reads `size` bytes only.
        return unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body(descriptor.raw, $0, size)
            }
        }
    }
}

// MARK: Hosts

extension SystemCalls {
    /// Why a host's name has no address, or nil if it has one; asks name servers, so it may take
    /// long.
    package static func resolutionProblem(of host: String) -> String? {
        var hints = unsafe addrinfo()
        unsafe hints.ai_family = AF_UNSPEC
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        unsafe hints.ai_flags = AI_PASSIVE
        var list: UnsafeMutablePointer<addrinfo>?
        // SAFETY: hints and string live through the call; a list that was made is freed once; the
        // text of an error is constant.
        let result = unsafe getaddrinfo(host, nil, &hints, &list)
        guard result != 0 else {
            unsafe freeaddrinfo(list)
            return nil
        }
        return unsafe String(cString: gai_strerror(result))
    }

    /// The addresses by which other machines reach this one, in the order of its interfaces; none
    /// of a loopback and none that holds on one link only.
    package static func ownAddresses() -> [(address: String, isIPv6: Bool)] {
        var list: UnsafeMutablePointer<ifaddrs>?
        // SAFETY: the list is freed below, and every link followed is nil or an entry of it; an
        // address is as long as its family says, and the buffer is as long as is said.
        guard unsafe getifaddrs(&list) == 0 else { return [] }
        defer { unsafe freeifaddrs(list) }
        var found: [(address: String, isIPv6: Bool)] = []
        var next = unsafe list
        while let entry = unsafe next {
            unsafe next = entry.pointee.ifa_next
            let flags = unsafe entry.pointee.ifa_flags
            guard flags & UInt32(IFF_UP) != 0,
                flags & UInt32(IFF_LOOPBACK) == 0,
                let address = unsafe entry.pointee.ifa_addr
            else { continue }
            let family = unsafe Int32(address.pointee.sa_family)
            guard family == AF_INET || family == AF_INET6 else { continue }
            let length =
                family == AF_INET
                ? MemoryLayout<sockaddr_in>.size : MemoryLayout<sockaddr_in6>.size
            var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
            guard
                unsafe getnameinfo(
                    address, socklen_t(length), &text, socklen_t(text.count), nil, 0,
                    NI_NUMERICHOST) == 0
            else { continue }
            let host = String(
                decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard !host.contains("%"), !host.hasPrefix("fe80:") else { continue }
            found.append((host, family == AF_INET6))
        }
        return found
    }
}

// MARK: Listening

extension SystemCalls {
    /// Connections that wait to be accepted.
    private static let backlog: Int32 = 128

    /// A TCP socket that listens at the first address of a host; port 0 takes any that is free.
    ///
    /// Its name may have to be resolved, which may take long.
    package static func listenTCP(host: String, port: UInt16) throws(Failure) -> Descriptor {
        var hints = unsafe addrinfo()
        unsafe hints.ai_family = AF_UNSPEC
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        unsafe hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        var list: UnsafeMutablePointer<addrinfo>?
        // SAFETY: hints and strings live through the call; the list that it makes is freed once,
        // after the last use of what it holds.
        guard unsafe getaddrinfo(host, String(port), &hints, &list) == 0, let first = unsafe list
        else { throw Failure(call: "getaddrinfo", number: EADDRNOTAVAIL) }
        defer { unsafe freeaddrinfo(list) }
        let raw = unsafe socket(
            first.pointee.ai_family, first.pointee.ai_socktype | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard raw >= 0 else { throw Failure(call: "socket", number: errno) }
        let descriptor = Descriptor(adopting: raw)
        var on: Int32 = 1
        // SAFETY: the kernel reads the local, whose size is given, during the call.
        unsafe setsockopt(
            raw, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
        // SAFETY: the address belongs to the list, which lives until the end, and is as long as it
        // says.
        guard unsafe bind(raw, first.pointee.ai_addr, first.pointee.ai_addrlen) == 0 else {
            throw Failure(call: "bind", number: errno)
        }
        guard listen(raw, backlog) == 0 else { throw Failure(call: "listen", number: errno) }
        return descriptor
    }

    /// Another number for an open file, which somebody else closes.
    static func duplicate(_ descriptor: Int32) throws(Failure) -> Int32 {
        let raw = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        guard raw >= 0 else { throw Failure(call: "fcntl", number: errno) }
        return raw
    }

    /// The port at which a TCP socket is bound; nil when it is none.
    package static func port(of descriptor: Int32) -> UInt16? {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        // SAFETY: the kernel fills in at most `length` bytes of the local during the call; both
        // kinds of address have their port in the same place, in network order.
        return unsafe withUnsafeMutablePointer(to: &address) { storage -> UInt16? in
            let isKnown = unsafe storage.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe getsockname(descriptor, $0, &length) == 0
            }
            let family = unsafe Int32(storage.pointee.ss_family)
            guard isKnown, family == AF_INET || family == AF_INET6 else { return nil }
            return unsafe storage.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                unsafe UInt16(bigEndian: $0.pointee.sin_port)
            }
        }
    }

    /// The name of this machine; empty when it has none.
    package static var hostName: String {
        var room = [CChar](repeating: 0, count: 256)
        // SAFETY: the buffer is as long as is said; its last byte stays zero.
        guard unsafe gethostname(&room, room.count - 1) == 0 else { return "" }
        return String(
            decoding: room.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
