import CFrontEnd
import Glibc
import VhostClient

/// A descriptor that is closed with its last owner.
package final class Descriptor: Sendable {
    package let number: Int32

    /// Takes the result of a call that opened it.
    init(_ number: Int32, from call: String) throws {
        guard number >= 0 else { throw ClientViolation("\(call): errno \(errno)") }
        self.number = number
    }

    deinit { close(number) }

    /// Opens a file for reading.
    package static func open(_ path: String) throws -> Descriptor {
        // SAFETY: the string outlives the call.
        try Descriptor(unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC), from: "open \(path)")
    }

    /// A counter that wakes its reader; reading it does not wait.
    package static func event() throws -> Descriptor {
        try Descriptor(front_end_event(), from: "eventfd")
    }

    /// The same, but each read takes one.
    package static func semaphore() throws -> Descriptor {
        try Descriptor(front_end_semaphore(), from: "eventfd")
    }

    /// A file on huge pages, of which there may be none.
    package static func hugeFile(bytes: Int) throws -> Descriptor {
        try Descriptor(front_end_huge_file(UInt64(bytes)), from: "memfd_create")
    }

    /// A connection whose last close waits for so many seconds, or until its peer is closed.
    package static func lingering(
        seconds: Int32
    ) throws -> (connection: Descriptor, peer: Descriptor) {
        var peer: Int32 = -1
        // SAFETY: the number goes to the local.
        let made = unsafe front_end_lingering(seconds, &peer)
        return (
            try Descriptor(made, from: "connect"), try Descriptor(peer, from: "accept")
        )
    }

    /// Takes pages out of a file in memory, which are zeros when somebody touches them again.
    package func punch(_ offset: UInt64, _ bytes: Int) {
        _ = front_end_punch(number, Int(offset), bytes)
    }

    /// Opens a file for reading and writing.
    package static func openBoth(_ path: String) throws -> Descriptor {
        // SAFETY: the string outlives the call.
        try Descriptor(unsafe Glibc.open(path, O_RDWR | O_CLOEXEC), from: "open \(path)")
    }

    /// Adds to the counter.
    package func signal(_ value: UInt64 = 1) {
        var value = value
        // SAFETY: eight bytes of a local variable.
        _ = unsafe Glibc.write(number, &value, 8)
    }

    /// Takes what the counter has, or zero.
    @discardableResult
    package func take() -> UInt64 {
        var value: UInt64 = 0
        // SAFETY: eight bytes of a local variable.
        return unsafe Glibc.read(number, &value, 8) == 8 ? value : 0
    }

    /// What tells of each signal to this counter, without a read of it.
    package func edge() throws -> Descriptor {
        try Descriptor(front_end_edge(number), from: "epoll")
    }

    /// Waits for the next signal to the counter whose edge this is.
    package func waitForEdge() { front_end_wait_for_edge(number) }

    package func setBlocking(_ isBlocking: Bool) {
        _ = front_end_set_blocking(number, isBlocking ? 1 : 0)
    }
}
