import Synchronization
import SystemLayer

/// Losses of sources that were told when they were opened, until somebody has acted on them.
///
/// The kernel tells the first one to open a file that writes to it were lost. An attach that comes
/// to nothing after that must not take the word along. Nor must a server of this process that lets
/// go of its disks while such an attach is at work: so the process keeps it, and no server or call.
enum EarlierLosses {
    private static let pending = Mutex<[FileNode: Int32]>([:])

    /// The errno that was just told, or one that still waits for somebody to act on it.
    static func keep(_ told: Int32?, of node: FileNode?) -> Int32? {
        guard let node else { return told }
        return pending.withLock { pending in
            if let told { pending[node] = told }
            return told ?? pending[node]
        }
    }

    static func forget(_ node: FileNode?) {
        guard let node else { return }
        pending.withLock { _ = $0.removeValue(forKey: node) }
    }
}
