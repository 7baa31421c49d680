import CLinux
import Glibc

/// A unix socket on which messages travel whole, with descriptors beside their bytes.
package struct MessageSocket: ~Copyable, Sendable {
    /// Descriptors that one message carries at most.
    package static let passedMax = Int(nbdpull_passed_max)
    /// A longer message is an error, in bytes.
    package static let messageBytesMax = 64 << 10

    private let descriptor: OwnedDescriptor
    package var raw: Int32 { descriptor.raw }

    /// Takes over a socket that nobody else closes.
    package init(adopting descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }

    /// What has come.
    package enum Received: Sendable {
        /// The descriptors belong to whoever receives this.
        case message([UInt8], passed: [Int32])
        /// The other side is gone.
        case ended
        /// Nothing in time.
        case nothing
    }

    /// Listens at a path, mode 0600; a file that nobody answers on is replaced.
    package static func listen(path: String) throws(SystemFault) -> MessageSocket {
        let descriptor = try make(SOCK_SEQPACKET)
        _ = try SystemFault.check("fchmod") { fchmod(descriptor.raw, 0o600) }
        if try !bind(descriptor.raw, path) {
            let probe = try make(SOCK_SEQPACKET)
            do throws(SystemFault) {
                try connect(probe.raw, path)
                throw SystemFault(call: "bind", errno: EADDRINUSE)
            } catch {
                guard error.errno == ECONNREFUSED else { throw error }
            }
            try FileCalls.remove(path)
            guard try bind(descriptor.raw, path) else {
                throw SystemFault(call: "bind", errno: EADDRINUSE)
            }
        }
        _ = try SystemFault.check("listen") { Glibc.listen(descriptor.raw, 16) }
        return MessageSocket(adopting: descriptor)
    }

    /// Connects to a socket that somebody listens on; ECONNREFUSED or ENOENT: nobody does.
    package static func connect(path: String) throws(SystemFault) -> MessageSocket {
        let descriptor = try make(SOCK_SEQPACKET)
        try connect(descriptor.raw, path)
        return MessageSocket(adopting: descriptor)
    }

    /// For datagrams to a path; a leading `@` means the abstract namespace.
    package static func datagrams(to path: String) throws(SystemFault) -> MessageSocket {
        let descriptor = try make(SOCK_DGRAM)
        try connect(descriptor.raw, path)
        return MessageSocket(adopting: descriptor)
    }

    /// A stream to a path, which does not wait; ECONNREFUSED or ENOENT: nobody listens.
    package static func stream(to path: String) throws(SystemFault) -> OwnedDescriptor {
        let descriptor = try make(SOCK_STREAM)
        try connect(descriptor.raw, path)
        return descriptor
    }

    /// The next one that has connected; nil when none has in time.
    package func accept(milliseconds: Int32) throws(SystemFault) -> MessageSocket? {
        guard wait(milliseconds: milliseconds) else { return nil }
        guard let descriptor = try SocketCalls.accept(raw) else { return nil }
        return MessageSocket(adopting: descriptor)
    }

    /// Who connected, and the user it had then.
    package func peer() throws(SystemFault) -> (process: Int32, user: UInt32) {
        var (process, user, group) = (Int32(0), UInt32(0), UInt32(0))
        _ = try SystemFault.check("getsockopt") {
            // SAFETY: three ints are filled.
            unsafe nbdpull_peer(raw, &process, &user, &group)
        }
        return (process, user)
    }

    /// Sends one message; descriptors stay the sender's own.
    ///
    /// A peer that does not read is waited for as long as its buffer is full, two seconds at most.
    package func send(_ bytes: [UInt8], passing passed: [Int32] = []) throws(SystemFault) {
        precondition(passed.count <= Self.passedMax, "a message carries a bounded number")
        for _ in 0..<Self.sendAttempts {
            // SAFETY: both buffers live for the call and their counts are given.
            let sent = unsafe bytes.withUnsafeBytes { buffer in
                unsafe passed.withUnsafeBufferPointer { numbers in
                    unsafe nbdpull_send_passing(
                        raw, buffer.baseAddress, buffer.count, numbers.baseAddress,
                        Int32(numbers.count))
                }
            }
            if sent == bytes.count { return }
            guard errno == EAGAIN || errno == EINTR else {
                throw SystemFault(call: "sendmsg", errno: errno)
            }
            _ = wait(milliseconds: Self.sendPauseMilliseconds, for: POLLOUT)
        }
        throw SystemFault(call: "sendmsg", errno: EAGAIN)
    }

    private static let sendAttempts = 20
    private static let sendPauseMilliseconds: Int32 = 100

    /// The next message.
    ///
    /// A negative time waits for ever.
    package func receive(milliseconds: Int32) throws(SystemFault) -> Received {
        guard wait(milliseconds: milliseconds) else { return .nothing }
        var bytes = [UInt8](repeating: 0, count: Self.messageBytesMax)
        var passed = [Int32](repeating: -1, count: Self.passedMax)
        var count: Int32 = 0
        // SAFETY: both buffers live for the call, and are as long as is said or agreed.
        let result = unsafe bytes.withUnsafeMutableBytes { buffer in
            unsafe passed.withUnsafeMutableBufferPointer { numbers in
                unsafe nbdpull_receive_passed(
                    raw, buffer.baseAddress, buffer.count, numbers.baseAddress, &count)
            }
        }
        if result == 0 || (result < 0 && errno == ECONNRESET) { return .ended }
        if result < 0, errno == EAGAIN || errno == EINTR { return .nothing }
        guard result > 0 else { throw SystemFault(call: "recvmsg", errno: errno) }
        return .message(Array(bytes[..<result]), passed: Array(passed[..<Int(count)]))
    }

    private func wait(milliseconds: Int32, for events: Int32 = POLLIN) -> Bool {
        Polling.wait([(raw, events)], milliseconds: milliseconds) != nil
    }

    private static func make(_ type: __socket_type) throws(SystemFault) -> OwnedDescriptor {
        let type = Int32(type.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let number = try SystemFault.check("socket") { socket(AF_UNIX, type, 0) }
        return OwnedDescriptor(adopting: number)
    }

    private static func connect(_ socket: Int32, _ path: String) throws(SystemFault) {
        _ = unsafe try withAddress(path) { address, size in
            // SAFETY: the address lives for the call, and its size is given.
            unsafe Glibc.connect(socket, address, size) == 0
                ? nil : SystemFault(call: "connect", errno: errno)
        }
    }

    /// False when the name is taken.
    private static func bind(_ socket: Int32, _ path: String) throws(SystemFault) -> Bool {
        do throws(SystemFault) {
            _ = unsafe try withAddress(path) { address, size in
                // SAFETY: the address lives for the call, and its size is given.
                unsafe Glibc.bind(socket, address, size) == 0
                    ? nil : SystemFault(call: "bind", errno: errno)
            }
            return true
        } catch {
            guard error.errno == EADDRINUSE else { throw error }
            return false
        }
    }

    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> SystemFault?
    ) throws(SystemFault) -> Bool {
        var bytes = Array(path.utf8)
        var address = sockaddr_un()
        let room = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < room else {
            throw SystemFault(call: "bind", errno: ENAMETOOLONG)
        }
        let isAbstract = bytes[0] == UInt8(ascii: "@")
        if isAbstract { bytes[0] = 0 }
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY: the path is shorter than the field, whose remaining bytes are zero.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        let head = MemoryLayout<sockaddr_un>.size - room
        let size = socklen_t(head + bytes.count + (isAbstract ? 0 : 1))
        // SAFETY: sockaddr_un begins with sockaddr's fields; the callee reads `size` bytes only.
        let fault = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body($0, size)
            }
        }
        if let fault { throw fault }
        return true
    }
}

/// Waits for one of several descriptors.
package enum Polling {
    /// The position of the first that is ready; nil when none is in time.
    ///
    /// A negative time waits for ever.
    package static func wait(
        _ descriptors: [(raw: Int32, events: Int32)], milliseconds: Int32
    ) -> Int? {
        var requests = descriptors.map {
            pollfd(fd: $0.raw, events: Int16($0.events), revents: 0)
        }
        let end = MonotonicClock.now() + UInt64(max(milliseconds, 0)) * 1_000_000
        while true {
            let now = MonotonicClock.now()
            let left =
                milliseconds < 0
                ? -1 : now >= end ? 0 : Int32(clamping: (end - now) / 1_000_000 + 1)
            // SAFETY: as many pollfds are passed as the count says.
            let result = unsafe poll(&requests, nfds_t(requests.count), left)
            if result > 0 { return requests.firstIndex { $0.revents != 0 } }
            if result == 0 { return nil }
            // Memory comes back; nothing else can fail.
            if errno != EINTR { usleep(10_000) }
        }
    }

    /// The same for input on one of them.
    package static func waitForInput(_ descriptors: [Int32], milliseconds: Int32) -> Int? {
        wait(descriptors.map { ($0, POLLIN) }, milliseconds: milliseconds)
    }
}
