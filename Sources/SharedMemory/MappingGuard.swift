import CLinux
import Glibc
import SystemLayer

/// A mapping whose file somebody else may shrink, in the table of the handler for SIGBUS.
///
/// A load or store behind the file's end finds zeros from then on, the whole mapping does, and the
/// guard says that its memory is gone. Whoever uses the memory asks before it believes what it has
/// loaded. An access anywhere else ends the process, as ever.
///
/// The table is in C: nothing else may run in a signal's context. Only this file uses it, so there is
/// one.
@safe
struct MappingGuard: ~Copyable {
    private let number: Int32

    private static let isInstalled: Bool = {
        nbdpull_guard_install()
        return true
    }()

    /// Guards the range that is mapped at `start`; ENOMEM: the table is full.
    init(start: UInt, byteCount: UInt) throws(SystemFault) {
        precondition(Self.isInstalled)
        let added = nbdpull_guard_add(start, start + byteCount)
        guard added >= 0 else { throw SystemFault(call: "mmap", errno: ENOMEM) }
        number = added
    }

    // Before the range is unmapped, and another mapping may take its place.
    deinit { nbdpull_guard_remove(number) }

    /// Whether the memory was lost, and what stands in its place is zeros.
    var isGone: Bool { nbdpull_guard_is_gone(number) != 0 }

    /// Mappings of this process that were lost so far.
    static var losses: UInt { nbdpull_guard_losses() }
}
