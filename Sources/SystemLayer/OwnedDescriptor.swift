import Glibc

/// A file descriptor that is closed exactly once, when its owner goes away.
package struct OwnedDescriptor: ~Copyable, Sendable {
    /// The number the kernel gave; valid while this value lives.
    package let raw: Int32

    /// Takes over a descriptor that nobody else closes.
    package init(adopting raw: Int32) {
        precondition(raw >= 0, "a descriptor is never negative")
        self.raw = raw
    }

    deinit {
        // EBADF would mean that someone else closed our descriptor: from then on any fd could be
        // anyone's.
        precondition(close(raw) == 0 || errno != EBADF, "descriptor \(raw) was closed twice")
    }

    /// Gives the descriptor away unclosed.
    package consuming func giveAway() -> Int32 {
        let number = raw
        discard self
        return number
    }
}
