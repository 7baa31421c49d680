import CLinux
import Glibc

/// A listening stream socket.
package struct Listener: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor
    package var raw: Int32 { descriptor.raw }
    package let isUnix: Bool
    /// The TCP port in use, 0 for a unix socket.
    package let port: UInt16
    private let unixPath: String?
    /// Peers that wait to be accepted: as many as the kernel allows by default, so that a flood
    /// does not turn honest ones away.
    private static let backlog: Int32 = 4096

    private init(
        _ descriptor: consuming OwnedDescriptor, isUnix: Bool, port: UInt16, unixPath: String?
    ) {
        self.descriptor = descriptor
        self.isUnix = isUnix
        self.port = port
        self.unixPath = unixPath
    }

    /// Closes the socket and removes the file of a unix socket.
    package consuming func close() {
        // SAFETY: the string is passed for the time of the call.
        if let unixPath { unsafe _ = unlink(unixPath) }
    }

    /// Binds a unix socket with the given permission bits, and group where one is given.
    ///
    /// A socket file that nobody answers on any more is replaced; one with a live server is
    /// EADDRINUSE, and a file that is no socket is EEXIST.
    package static func unix(
        path: String, mode: UInt32, group: UInt32? = nil
    ) throws(SystemFault) -> Listener {
        var address = sockaddr_un()
        let bytes = Array(path.utf8)
        let room = MemoryLayout.size(ofValue: address.sun_path)
        guard bytes.count < room else { throw SystemFault(call: "bind", errno: ENAMETOOLONG) }
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY: the path is shorter than the field, whose remaining bytes are zero.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { field in
            for (index, byte) in bytes.enumerated() { unsafe field[index] = byte }
        }
        try removeStale(path, address)
        let socket = try makeSocket(AF_UNIX)
        // The file must never be open wider than asked for, not even between bind and chmod: it
        // takes the socket's own mode. A change of the umask would reach every other thread's
        // files.
        _ = try SystemFault.check("fchmod") {
            fchmod(socket.raw, mode_t(group == nil ? mode : mode & 0o700))
        }
        try bind(socket.raw, &address)
        do throws(SystemFault) {
            if let group {
                // uid -1: as it is.
                _ = try SystemFault.check("chown") { unsafe chown(path, uid_t.max, group) }
            }
            _ = try SystemFault.check("chmod") { unsafe chmod(path, mode_t(mode)) }
            _ = try SystemFault.check("listen") { Glibc.listen(socket.raw, backlog) }
        } catch {
            unsafe _ = unlink(path)
            throw error
        }
        return Listener(socket, isUnix: true, port: 0, unixPath: path)
    }

    /// Closes the socket and leaves the file of a unix socket: whoever has the same socket goes on.
    package consuming func closeKeepingFile() {}

    /// Takes over a unix socket that an earlier server has bound to `path`, with these permissions
    /// from now on.
    ///
    /// Throws when it is another socket, or when nobody could reach it there.
    package static func inherited(
        _ descriptor: consuming OwnedDescriptor, path: String, mode: UInt32, group: UInt32? = nil
    ) throws(SystemFault) -> Listener {
        guard try unixPath(of: descriptor.raw) == path, isSocket(path) else {
            throw SystemFault(call: "bind", errno: ENOTSOCK)
        }
        if let group {
            // SAFETY: the path is passed for the time of the call. uid -1: as it is.
            _ = try SystemFault.check("chown") { unsafe chown(path, uid_t.max, group) }
        }
        // SAFETY: the same.
        _ = try SystemFault.check("chmod") { unsafe chmod(path, mode_t(mode)) }
        let listener = try checked(descriptor)
        return Listener(listener, isUnix: true, port: 0, unixPath: path)
    }

    /// Takes over a TCP socket that an earlier server has bound to this port; throws when it is
    /// another.
    package static func inherited(
        _ descriptor: consuming OwnedDescriptor, port: UInt16
    ) throws(SystemFault) -> Listener {
        guard try option(descriptor.raw, SO_DOMAIN) != AF_UNIX,
            try boundPort(descriptor.raw) == port
        else { throw SystemFault(call: "bind", errno: ENOTSOCK) }
        let listener = try checked(descriptor)
        return Listener(listener, isUnix: false, port: port, unixPath: nil)
    }

    private static func checked(
        _ descriptor: consuming OwnedDescriptor
    ) throws(SystemFault) -> OwnedDescriptor {
        let number = descriptor.raw
        guard try option(number, SO_TYPE) == Int32(SOCK_STREAM.rawValue),
            try option(number, SO_ACCEPTCONN) == 1
        else { throw SystemFault(call: "listen", errno: EINVAL) }
        _ = try SystemFault.check("fcntl") { fcntl(number, F_SETFL, O_NONBLOCK) }
        _ = try SystemFault.check("fcntl") { fcntl(number, F_SETFD, FD_CLOEXEC) }
        return descriptor
    }

    private static func isSocket(_ path: String) -> Bool {
        var facts = stat()
        // SAFETY: the kernel fills the local; the string is passed for the time of the call.
        return unsafe lstat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFSOCK
    }

    /// Takes over a socket that listens already: the service manager's.
    ///
    /// Its file, if it has one, is not ours to remove. EINVAL: it is no listening stream socket;
    /// EAFNOSUPPORT: it is neither a unix nor an IP socket.
    package static func adopting(
        _ number: Int32
    ) throws(SystemFault) -> Listener {
        guard try option(number, SO_TYPE) == Int32(SOCK_STREAM.rawValue),
            try option(number, SO_ACCEPTCONN) == 1
        else { throw SystemFault(call: "listen", errno: EINVAL) }
        let family = try option(number, SO_DOMAIN)
        guard [AF_UNIX, AF_INET, AF_INET6].contains(family) else {
            throw SystemFault(call: "listen", errno: EAFNOSUPPORT)
        }
        _ = try SystemFault.check("fcntl") { fcntl(number, F_SETFL, O_NONBLOCK) }
        _ = try SystemFault.check("fcntl") { fcntl(number, F_SETFD, FD_CLOEXEC) }
        let port = family == AF_UNIX ? 0 : try boundPort(number)
        return Listener(
            OwnedDescriptor(adopting: number), isUnix: family == AF_UNIX, port: port,
            unixPath: nil)
    }

    /// Where a listening socket is bound: a unix socket's path, or nil for one of another family.
    package static func unixPath(of number: Int32) throws(SystemFault) -> String? {
        guard try option(number, SO_DOMAIN) == AF_UNIX else { return nil }
        var address = sockaddr_un()
        var length = socklen_t(MemoryLayout<sockaddr_un>.size)
        // SAFETY: a sockaddr_un is passed with its size.
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe getsockname(number, $0, &length)
            }
        }
        guard result == 0 else { throw SystemFault(call: "getsockname", errno: errno) }
        // SAFETY: only the field's own bytes are read.
        return unsafe withUnsafeBytes(of: &address.sun_path) { field in
            unsafe String(decoding: field.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    /// The numeric address that a listening TCP socket is bound to.
    package static func tcpHost(of number: Int32) throws(SystemFault) -> String {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
        // SAFETY: storage is large enough for every family; the text's room is passed with it.
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { general in
                unsafe getsockname(number, general, &length) == 0
                    && getnameinfo(
                        general, length, &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST) == 0
            }
        }
        guard result else { throw SystemFault(call: "getsockname", errno: EINVAL) }
        let bytes = text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func option(_ number: Int32, _ name: Int32) throws(SystemFault) -> Int32 {
        var value: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        _ = try SystemFault.check("getsockopt") {
            // SAFETY: an int is passed with its size.
            unsafe getsockopt(number, SOL_SOCKET, name, &value, &length)
        }
        return value
    }

    private static func removeStale(
        _ path: String, _ address: sockaddr_un
    ) throws(SystemFault) {
        var facts = stat()
        // SAFETY: the kernel fills the local.
        guard unsafe lstat(path, &facts) == 0 else { return }
        guard facts.st_mode & S_IFMT == S_IFSOCK else {
            throw SystemFault(call: "bind", errno: EEXIST)
        }
        let probe = try makeSocket(AF_UNIX)
        var address = address
        // SAFETY: a sockaddr_un is passed with its size.
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe connect(probe.raw, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result != 0, errno == ECONNREFUSED else {
            throw SystemFault(call: "bind", errno: EADDRINUSE)
        }
        unsafe _ = unlink(path)
    }

    /// Binds a TCP socket on a name or numeric address.
    package static func tcp(host: String, port: UInt16) throws(SystemFault) -> Listener {
        var hints = unsafe addrinfo()
        unsafe hints.ai_family = AF_UNSPEC
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        unsafe hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        var list: UnsafeMutablePointer<addrinfo>?
        // SAFETY: the list is freed below; hints and strings live through the call.
        guard unsafe getaddrinfo(host, String(port), &hints, &list) == 0,
            let first = unsafe list
        else { throw SystemFault(call: "getaddrinfo", errno: EADDRNOTAVAIL) }
        defer { unsafe freeaddrinfo(first) }
        var failure = SystemFault(call: "bind", errno: EADDRNOTAVAIL)
        var next: UnsafeMutablePointer<addrinfo>? = unsafe first
        // A name may stand for addresses of a family that this machine does not have.
        while let candidate = unsafe next {
            do throws(SystemFault) {
                return unsafe try listen(on: candidate.pointee)
            } catch {
                failure = error
            }
            unsafe next = candidate.pointee.ai_next
        }
        throw failure
    }

    @unsafe
    private static func listen(on address: addrinfo) throws(SystemFault) -> Listener {
        let socket = try makeSocket(unsafe address.ai_family)
        _ = SocketCalls.set(socket.raw, SOL_SOCKET, SO_REUSEADDR, 1)
        // SAFETY: address and length come from getaddrinfo, whose list the caller keeps.
        _ = try SystemFault.check("bind") {
            unsafe Glibc.bind(socket.raw, address.ai_addr, address.ai_addrlen)
        }
        _ = try SystemFault.check("listen") { Glibc.listen(socket.raw, backlog) }
        let bound = try boundPort(socket.raw)
        return Listener(socket, isUnix: false, port: bound, unixPath: nil)
    }

    private static func makeSocket(_ family: Int32) throws(SystemFault) -> OwnedDescriptor {
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let number = try SystemFault.check("socket") { socket(family, type, 0) }
        return OwnedDescriptor(adopting: number)
    }

    private static func bind(_ socket: Int32, _ address: inout sockaddr_un) throws(SystemFault) {
        // SAFETY: a sockaddr_un is passed with its size.
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe Glibc.bind(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else { throw SystemFault(call: "bind", errno: errno) }
    }

    private static func boundPort(_ socket: Int32) throws(SystemFault) -> UInt16 {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        // SAFETY: storage is large enough for every family; length says so.
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe getsockname(socket, $0, &length)
            }
        }
        guard result == 0 else { throw SystemFault(call: "getsockname", errno: errno) }
        // SAFETY: sin_port and sin6_port lie at the same place, two bytes in network order.
        return unsafe withUnsafeBytes(of: &address) { bytes in
            unsafe UInt16(bytes[2]) << 8 | UInt16(bytes[3])
        }
    }
}
