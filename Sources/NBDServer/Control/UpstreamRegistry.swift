import ServerInterface
import Synchronization
import Upstream

/// The upstreams that are open, by the numbers under which rings know them.
final class UpstreamRegistry: Sendable {
    struct Found: Sendable {
        let source: UpstreamSource
        /// The ring that has its connections.
        let home: Int
    }

    private struct Content {
        var upstreams: [Int32: Found] = [:]
        /// Those that are being opened, or are open for writing: nobody else writes to them from
        /// here.
        var written: Set<UpstreamAddress> = []
        var lastNumber: Int32 = -1
    }

    private let content = Mutex(Content())

    func find(_ number: Int32) -> Found? { content.withLock { $0.upstreams[number] } }

    /// The number for one that is being opened; nil when somebody here writes to the same.
    func reserve(_ address: UpstreamAddress, forWriting: Bool) -> Int32? {
        content.withLock { content in
            if forWriting, !content.written.insert(address).inserted { return nil }
            content.lastNumber -= 1
            return content.lastNumber
        }
    }

    func add(_ source: UpstreamSource, home: Int) {
        content.withLock { $0.upstreams[source.number] = Found(source: source, home: home) }
    }

    func remove(_ number: Int32, _ address: UpstreamAddress, wasForWriting: Bool) {
        content.withLock { content in
            content.upstreams[number] = nil
            if wasForWriting { content.written.remove(address) }
        }
    }
}
