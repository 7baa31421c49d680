import Glibc
import Synchronization
package import SystemLayer

/// A directory in memory that outlives simulated processes: real files, by which production code
/// follows ledgers, since they never fail and never wait.
package final class MemoryDirectory {
    package let path: String
    private static let last = Atomic<UInt64>(0)

    package init() {
        let number = Self.last.add(1, ordering: .relaxed).newValue
        path = "/dev/shm/nbdpull-simulate-\(getpid())-\(number)"
    }

    deinit { clear() }

    /// The power goes, or the history is over.
    package func clear() {
        for name in StateFiles.names(in: path) { try? FileCalls.remove(path + "/" + name) }
        try? FileCalls.removeDirectory(path)
    }

    package func make() throws(SystemFault) { try StateFiles.makeDirectory(path) }

    /// What a file holds; nil where there is none.
    package func content(of name: String) -> [UInt8]? {
        (try? StateFiles.read(path + "/" + name, limit: 1 << 20)) ?? nil
    }

    /// A file is as it was some time ago.
    package func put(_ bytes: [UInt8], into name: String) {
        guard let file = try? FileCalls.open(path + "/" + name, [.write]) else { return }
        try? FileCalls.write(file.raw, bytes, at: 0)
    }
}
