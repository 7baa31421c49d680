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
