import Synchronization
import SystemLayer

/// Decides whether a session may still write its record: not when it was said that its changes are
/// not recorded.
///
/// The writer of a record may wait long for its storage, and be overtaken by the loss of tracking
/// that the wait brings about. A name given after that would bring back what was just taken away.
final class RecordGate: Sendable {
    private let isClosed = Mutex(false)

    /// Does the last step of a write, unless the gate is closed; false when it is.
    ///
    /// Holds up `close` meanwhile: the two would wait for the same directory anyway.
    func pass(_ step: () throws(SystemFault) -> Void) throws(SystemFault) -> Bool {
        try isClosed.withLock { isClosed throws(SystemFault) in
            if isClosed { return false }
            try step()
            return true
        }
    }

    /// Nothing passes any more.
    func close() { isClosed.withLock { $0 = true } }
}
