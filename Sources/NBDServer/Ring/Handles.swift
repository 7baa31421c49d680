// A ring names files, sockets and pages by small values. In the server they are descriptors of the
// kernel; what a simulated ring takes them for is its own affair. They own nothing: a source and
// scratch are closed with the object they belong to, a socket by `RingIO.close`.

/// An open file or block device, or an upstream.
struct FileHandle: Hashable, Sendable, BitwiseCopyable {
    let number: Int32

    init(_ number: Int32) { self.number = number }

    /// It stands for an upstream, by its number.
    var isUpstream: Bool { number < -1 }
}

/// A connected socket.
struct SocketHandle: Hashable, Sendable, BitwiseCopyable {
    let number: Int32

    init(_ number: Int32) { self.number = number }
}

/// An eventfd that a front-end shares.
struct EventHandle: Hashable, Sendable, BitwiseCopyable {
    let number: Int32

    init(_ number: Int32) { self.number = number }
}

/// What calls a front-end's guest.
struct CallHandle: Hashable, Sendable, BitwiseCopyable {
    let number: UInt

    init(_ number: UInt) { self.number = number }
}

/// A listening socket.
struct ListenerHandle: Hashable, Sendable, BitwiseCopyable {
    let number: Int32

    init(_ number: Int32) { self.number = number }
}

/// Pages of a file on their way to a socket.
struct PageRun: Hashable, Sendable, BitwiseCopyable {
    let number: Int32

    init(_ number: Int) { self.number = Int32(truncatingIfNeeded: number) }
}

/// What a ring can wait for; it happens once for each time it was asked for.
enum RingEvent: Hashable, Sendable {
    /// The socket takes more, or is broken.
    case writable(SocketHandle)
    /// The socket has something to receive, or is broken.
    case readable(SocketHandle)
    /// A peer waits to be accepted, or the listener is broken.
    case acceptable(ListenerHandle)
    /// Messages are in the ring's mailbox.
    case messages
    /// The ring's period is over.
    case tick
}
