import CLinux
import Glibc

/// Calls on connected sockets.
package enum SocketCalls {
    /// Send buffer asked for on unix sockets: large replies then leave in one call, in bytes.
    private static let unixSendBufferBytes: Int32 = 1 << 20
    /// The same for TCP within one machine: a peer there reads what has not left the processor's
    /// cache, in bytes.
    private static let localSendBufferBytes: Int32 = 384 << 10

    /// Accepts one connection, non-blocking and close-on-exec; nil when none waits.
    package static func accept(_ listener: Int32) throws(SystemFault) -> OwnedDescriptor? {
        do throws(SystemFault) {
            let number = try SystemFault.check("accept4") { nbdpull_accept(listener) }
            return OwnedDescriptor(adopting: number)
        } catch {
            if error.errno == EAGAIN || error.errno == ECONNABORTED { return nil }
            throw error
        }
    }

    /// Sets what every connection needs: no delay on TCP, a large send buffer on unix sockets,
    /// keepalive on TCP.
    package static func tune(_ descriptor: Int32, isUnix: Bool) {
        if isUnix {
            // As root the limit of net.core.wmem_max does not bind; otherwise the kernel caps the
            // value.
            if set(descriptor, SOL_SOCKET, nbdpull_SO_SNDBUFFORCE, unixSendBufferBytes) != 0 {
                _ = set(descriptor, SOL_SOCKET, SO_SNDBUF, unixSendBufferBytes)
            }
        } else {
            _ = set(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
            // Elsewhere the kernel fits it to the way.
            if isOnThisMachine(descriptor) {
                _ = set(descriptor, SOL_SOCKET, SO_SNDBUF, localSendBufferBytes)
            }
            // A peer that vanished is found out in two minutes, with or without data on its way;
            // the kernel's own values say two hours.
            _ = set(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1)
            _ = set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPIDLE, 60)
            _ = set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPINTVL, 15)
            _ = set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPCNT, 4)
            _ = set(descriptor, Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, 120_000)
        }
    }

    /// The address of a TCP peer, or nil when there is none.
    package static func peer(of descriptor: Int32) -> PeerAddress? {
        let bytes = addressBytes(descriptor, ofPeer: true)
        return switch bytes.count {
        case 4: PeerAddress(v4: bytes)
        case 16: PeerAddress(v6: bytes)
        default: nil
        }
    }

    /// The whole address of a TCP socket's peer as digits; nil when there is none.
    package static func peerText(of descriptor: Int32) -> String? {
        let bytes = addressBytes(descriptor, ofPeer: true)
        guard !bytes.isEmpty else { return nil }
        return bytes.map { String($0, radix: 16) }.joined(separator: ".")
    }

    /// The port of a TCP socket itself; nil when there is none.
    package static func port(of descriptor: Int32) -> UInt16? {
        let number = nbdpull_socket_port(descriptor)
        return number > 0 ? UInt16(truncatingIfNeeded: number) : nil
    }

    /// Whether a TCP peer has any of this machine's addresses, other than the one of this side
    /// perhaps: one that a socket can be bound to.
    package static func isOfThisMachine(_ descriptor: Int32) -> Bool {
        isOnThisMachine(descriptor) || nbdpull_peer_is_local(descriptor) == 1
    }

    /// Whether a TCP peer has the very address that it connected to: both ends are on this machine.
    package static func isOnThisMachine(_ descriptor: Int32) -> Bool {
        let bytes = addressBytes(descriptor, ofPeer: true)
        return !bytes.isEmpty && bytes == addressBytes(descriptor, ofPeer: false)
    }

    /// An IP address in network order, 4 or 16 bytes; empty when there is none.
    private static func addressBytes(_ descriptor: Int32, ofPeer: Bool) -> [UInt8] {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        // SAFETY: storage is large enough for every family; length says so.
        let result = unsafe nbdpull_socket_address(descriptor, ofPeer ? 1 : 0, &address, &length)
        guard result == 0 else { return [] }
        let family = Int32(address.ss_family)
        // SAFETY: sockaddr_in and sockaddr_in6 keep their address at bytes 4 and 8; both lie
        // inside.
        return unsafe withUnsafeBytes(of: &address) { bytes in
            switch family {
            case AF_INET: unsafe Array(bytes[4..<8])
            case AF_INET6: unsafe Array(bytes[8..<24])
            default: []
            }
        }
    }

    /// Whether the other side has closed the connection or its half of it, whatever is still
    /// unread.
    package static func hasHungUp(_ descriptor: Int32) -> Bool {
        var state = pollfd(fd: descriptor, events: nbdpull_POLLRDHUP, revents: 0)
        // SAFETY: one pollfd is passed as one.
        return unsafe poll(&state, 1, 0) > 0
    }

    /// Whether a read would not wait: something has come, or the other side is gone.
    package static func isReadable(_ descriptor: Int32) -> Bool {
        var state = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        // SAFETY: one pollfd is passed as one.
        return unsafe poll(&state, 1, 0) > 0
    }

    /// The process that connected to a unix socket, its user and its group, as they were then.
    package static func peer(
        _ descriptor: Int32
    ) -> (process: Int32, user: UInt32, group: UInt32)? {
        var process: Int32 = 0
        var user: UInt32 = 0
        var group: UInt32 = 0
        // SAFETY: three ints are filled.
        guard unsafe nbdpull_peer(descriptor, &process, &user, &group) == 0 else { return nil }
        return (process, user, group)
    }

    /// Ends both directions: whatever the kernel still waits for on the socket completes at once.
    package static func shutdown(_ descriptor: Int32) { _ = Glibc.shutdown(descriptor, 2) }

    static func set(_ descriptor: Int32, _ level: Int32, _ name: Int32, _ value: Int32) -> Int32 {
        var value = value
        // SAFETY: an int is passed with its size; the kernel copies it.
        return unsafe setsockopt(
            descriptor, level, name, &value, socklen_t(MemoryLayout<Int32>.size))
    }
}

/// Whom connections are counted for: an IPv4 address, or the /64 of an IPv6 address, as anyone who
/// has one of those has all.
package struct PeerAddress: Hashable, Sendable {
    private let high: UInt64
    private let low: UInt64

    /// Four bytes in network order.
    package init(v4 bytes: some Collection<UInt8>) {
        high = 0
        low = bytes.reduce(0xFFFF) { $0 << 8 | UInt64($1) }
    }

    /// Sixteen bytes in network order; an IPv4 address in IPv6's clothes is that IPv4 address.
    package init(v6 bytes: some Collection<UInt8>) {
        high = bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
        let rest = bytes.dropFirst(8).reduce(0) { $0 << 8 | UInt64($1) }
        low = high == 0 && rest >> 32 == 0xFFFF ? rest : 0
    }
}
