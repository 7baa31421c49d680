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
        /// Where the images lie that an adapter has open for it, of all layers; the first is at
        /// `place`.
        let images: [ImagePlace]
        var use: Use
        /// What people know it by.
        let name: String
        /// Its server as it was found, and the export's name.
        var found: String?

        /// Whether both may be one place, by its text and the image that lies there.
        fileprivate func isAt(_ place: String, _ images: [ImagePlace]) -> Bool {
            self.place == place && !isElsewhere(images)
        }

        /// Whether images of one name lie in two clusters.
        fileprivate func isElsewhere(_ images: [ImagePlace]) -> Bool {
            guard let own = self.images.first, let other = images.first else { return false }
            return own.text == other.text && !own.mayBe(other)
        }

        fileprivate func shares(_ images: [ImagePlace]) -> Bool {
            self.images.contains { own in images.contains { own.mayBe($0) } }
        }
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
    /// `place`: where it is, the same text for the same place. `images`: all images that are behind
    /// it; scratch shares none of them.
    func reserve(
        place: String, images: [ImagePlace] = [], name: String, for use: Use
    ) -> Result<Int32, Taken> {
        content.withLock { content in
            let other = content.entries.values.first { entry in
                entry.use.excludes(use)
                    && (entry.isAt(place, images)
                        || (use.isScratch || entry.use.isScratch) && entry.shares(images))
            }
            if let other { return .failure(Taken(by: other)) }
            content.lastNumber -= 1
            content.entries[content.lastNumber] = Entry(
                place: place, images: images, use: use, name: name)
            return .success(content.lastNumber)
        }
    }

    /// Notes which server was found, whatever it was called; returns one that is open at the same
    /// and, being scratch or not, has nothing to do with this one.
    ///
    /// Looks where sockets lead to now, for a server may have been started again since; may wait
    /// for a file system.
    func note(_ number: Int32, found: String) -> Entry? {
        let others = content.withLock { content -> [(entry: Entry, source: UpstreamSource?)] in
            guard let use = content.entries[number]?.use else { return [] }
            content.entries[number]?.found = found
            return content.entries.compactMap { other, entry in
                guard other != number, entry.use.excludes(use),
                    use.isScratch || entry.use.isScratch
                else { return nil }
                return (entry, content.upstreams[other]?.source)
            }
        }
        return others.first { $0.entry.found == found || $0.source?.placeNow == found }?.entry
    }

    /// Whether the images of an upstream lie in another cluster than these, whatever their names are.
    func isElsewhere(_ number: Int32, _ images: [ImagePlace]) -> Bool {
        content.withLock { $0.entries[number]?.isElsewhere(images) ?? false }
    }

    func add(_ source: UpstreamSource, home: Int) {
        content.withLock { $0.upstreams[source.number] = Found(source: source, home: home) }
    }

    /// Nobody asks it any more; the program behind it may still have its images.
    ///
    /// The next program of the same disk waits for that one by itself, so only scratch is kept away.
    func letGo(_ number: Int32) {
        content.withLock { content in
            content.upstreams[number] = nil
            if content.entries[number]?.use == .writing { content.entries[number]?.use = .reading }
        }
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
