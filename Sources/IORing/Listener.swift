import CLibURing
import Glibc

/// A listening stream socket.
package struct Listener: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor
    package var raw: Int32 { descriptor.raw }
    package let isUnix: Bool
    /// The TCP port in use, 0 for a unix socket.
    package let port: UInt16
    private let unixPath: String?
    private static let backlog: Int32 = 128

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

    /// Binds a unix socket with the given permission bits.
    ///
    /// A socket file that nobody answers on any more is replaced; one with a live server is
    /// EADDRINUSE, and a file that is no socket is EEXIST.
    package static func unix(
        path: String, mode: UInt32
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
        // The file must never be open wider than asked for, not even between bind and chmod.
        let mask = umask(0o777 & ~mode_t(mode))
        defer { umask(mask) }
        try bind(socket.raw, &address)
        do throws(SystemFault) {
            _ = try SystemFault.check("chmod") { unsafe chmod(path, mode_t(mode)) }
            _ = try SystemFault.check("listen") { Glibc.listen(socket.raw, backlog) }
        } catch {
            unsafe _ = unlink(path)
            throw error
        }
        return Listener(socket, isUnix: true, port: 0, unixPath: path)
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
