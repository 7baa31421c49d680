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

    /// What an upstream is opened for.
    enum Use: Sendable, Hashable {
        case reading
        case writing
        /// Old content of a job, by its id.
        case scratch(job: String)

        func excludes(_ other: Use) -> Bool {
            switch (self, other) {
            case (.scratch, _), (_, .scratch), (.writing, .writing): true
            case (.reading, _), (_, .reading): false
            }
        }

        fileprivate var isScratch: Bool {
            if case .scratch = self { true } else { false }
        }
    }

    /// One that is being opened, or is open.
    struct Entry: Sendable {
        let place: String
        let use: Use
        /// What people know it by.
        let name: String
        /// Its server as it was found, and the export's name.
        var found: String?
    }

    private struct Content {
        var upstreams: [Int32: Found] = [:]
        var entries: [Int32: Entry] = [:]
        var lastNumber: Int32 = -1
    }

    private let content = Mutex(Content())

    func find(_ number: Int32) -> Found? { content.withLock { $0.upstreams[number] } }

    /// The number for one that is being opened; fails with the one that has the same place and
    /// excludes it.
    ///
    /// `place`: where it is, the same text for the same place.
    func reserve(place: String, name: String, for use: Use) -> Result<Int32, Taken> {
        content.withLock { content in
            let other = content.entries.values.first {
                $0.place == place && $0.use.excludes(use)
            }
            if let other { return .failure(Taken(by: other)) }
            content.lastNumber -= 1
            content.entries[content.lastNumber] = Entry(place: place, use: use, name: name)
            return .success(content.lastNumber)
        }
    }

    /// Notes which server was found, whatever it was called; returns one that is open at the same
    /// and, being scratch or not, has nothing to do with this one.
    func note(_ number: Int32, found: String) -> Entry? {
        content.withLock { content in
            guard let use = content.entries[number]?.use else { return nil }
            content.entries[number]?.found = found
            return content.entries.first { other, entry in
                other != number && entry.found == found && entry.use.excludes(use)
                    && (use.isScratch || entry.use.isScratch)
            }?.value
        }
    }

    func add(_ source: UpstreamSource, home: Int) {
        content.withLock { $0.upstreams[source.number] = Found(source: source, home: home) }
    }

    func remove(_ number: Int32) {
        content.withLock { content in
            content.upstreams[number] = nil
            content.entries[number] = nil
        }
    }

    /// Why a place cannot be had.
    struct Taken: Error {
        let by: Entry
        init(by entry: Entry) { by = entry }
    }
}

extension UpstreamAddress {
    /// The same for the same export, however the connection is secured.
    var placeText: String {
        var plain = self
        plain.security = .plain
        return plain.uri
    }
}
