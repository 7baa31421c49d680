import Synchronization
import SystemLayer

/// Files that hold no disk and no scratch, no matter who names them: the server's own state, and
/// what the kernel shows of itself as files.
package final class ReservedPaths: Sendable {
    /// Files and directories that belong to the server, each with its path without links once it
    /// was found: hundreds of disks are checked at a start.
    private let own: Mutex<[(path: String, resolved: String?)]>

    package init(_ own: [String] = []) { self.own = Mutex(own.map { ($0, nil) }) }

    /// Throws when an open file is one of them, also when it was opened through links.
    ///
    /// What has another name of its own, by a hard link or a bind mount, is not recognised.
    package func check(_ descriptor: Int32) throws(SourceFault) {
        if FileCalls.isKernelInterface(descriptor) { throw .kernelInterface }
        guard let path = FileCalls.path(of: descriptor) else { return }
        // Nothing is looked up under the lock: a path may not answer.
        for (index, place) in own.withLock({ $0 }).enumerated() {
            guard let found = place.resolved ?? look(index, place.path) else { continue }
            if path == found || path.hasPrefix(found + "/") { throw .ownState }
        }
    }

    /// What is not there yet may come, and is looked for every time.
    private func look(_ index: Int, _ path: String) -> String? {
        guard let found = FileCalls.resolved(path) else { return nil }
        own.withLock { $0[index].resolved = found }
        return found
    }
}
