import CLinux
import Glibc
import SystemLayer

/// A mapping whose file somebody else may shrink, in the table of the handler for SIGBUS.
///
/// A load or store behind the file's end finds zeros from then on, the whole mapping does, and the
/// guard says that its memory is gone. The user of the memory asks before it believes what it has
/// loaded. An access anywhere else ends the process, as ever.
///
/// The handler is in C: nothing else may run in a signal's context.
@safe
struct MappingGuard: ~Copyable {
    private let number: Int32

    /// The handler is there from the first mapping on.
    ///
    /// One table for the process, as a global of this
    /// module is; 0: there was no memory for it, and nothing is mapped.
    private static let table: UInt = nbdpull_guards_install()

    /// Guards the range that is mapped at `start`, in pages of so many bytes; ENOMEM: the table is
    /// full.
    init(start: UInt, byteCount: UInt, pageBytes: UInt) throws(SystemFault) {
        let added = nbdpull_guard_add(Self.table, start, start + byteCount, pageBytes)
        guard added >= 0 else { throw SystemFault(call: "mmap", errno: ENOMEM) }
        number = added
    }

    // Before the range is unmapped, and another mapping may take its place.
    deinit { nbdpull_guard_remove(Self.table, number) }

    /// Whether the memory was lost, and zeros have taken its place.
    var isGone: Bool { nbdpull_guard_is_gone(Self.table, number) != 0 }

    /// Mappings of this process that were lost so far.
    static var losses: UInt { nbdpull_guard_losses(table) }
}
