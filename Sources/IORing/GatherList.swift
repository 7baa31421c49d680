import CLinux
import Glibc
import SystemLayer

/// Collects ranges of an arena and sends them with one call.
@safe
package struct GatherList: ~Copyable {
    /// Ranges that fit.
    package static let capacity = 32
    private let vectors: UnsafeMutablePointer<iovec>
    package private(set) var count = 0

    package init() {
        unsafe vectors = .allocate(capacity: Self.capacity)
        unsafe vectors.initialize(repeating: iovec(), count: Self.capacity)
    }

    deinit { unsafe vectors.deallocate() }

    package mutating func removeAll() { count = 0 }

    /// Adds a range; the list must not be full.
    package mutating func append(_ arena: borrowing BufferArena, at offset: Int, count bytes: Int) {
        precondition(count < Self.capacity, "gather list is full")
        // SAFETY: the index is below capacity; pointer() checks the range.
        unsafe vectors[count] = unsafe iovec(
            iov_base: arena.pointer(offset, bytes), iov_len: bytes)
        count += 1
    }

    /// Sends without waiting; returns the bytes taken or the negative errno (EAGAIN: the socket is
    /// full).
    ///
    /// `more` says that other bytes follow at once.
    package func send(_ descriptor: Int32, more: Bool = false) -> Int {
        var message = unsafe msghdr()
        unsafe message.msg_iov = unsafe vectors
        unsafe message.msg_iovlen = count
        while true {
            // SAFETY: the vectors name arena ranges that live through the call.
            let result = unsafe sendmsg(
                descriptor, &message,
                nbdpull_MSG_DONTWAIT | nbdpull_MSG_NOSIGNAL | (more ? nbdpull_MSG_MORE : 0))
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }
}
