package import NBDProtocol

/// What machines have requested of a disk since it was attached: valid requests, answered or
/// not.
package struct GuestFigures: Sendable, Hashable {
    package var readRequests: UInt64 = 0
    package var readBytes: UInt64 = 0
    package var writeRequests: UInt64 = 0
    /// Trimming and zeroing count as writing, because they change the disk.
    package var writeBytes: UInt64 = 0
    package var flushRequests: UInt64 = 0
    /// How long writes waited that came upon a copy which a job needed first.
    package var copyWaits = DurationHistogram()

    package init() {}

    /// Counts a valid request of so many bytes.
    package mutating func count(_ command: Command, _ bytes: UInt64) {
        switch command {
        case .read:
            readRequests &+= 1
            readBytes &+= bytes
        case .write, .trim, .writeZeroes:
            writeRequests &+= 1
            writeBytes &+= bytes
        case .flush: flushRequests &+= 1
        case .cache, .blockStatus, .disconnect: break
        }
    }
}
