import Synchronization

/// Which jobs clients of the libvirt door have begun: libvirt's calls name none.
///
/// What is known here is gone when the server stops, as the connections are.
final class BegunJobs: Sendable {
    /// Jobs that are remembered; of more the oldest are forgotten.
    static let countMax = 1024

    private struct Entry {
        let id: String
        let domain: String
        let user: UInt32
        let process: Int32
        var isRead = false
    }

    /// The oldest first.
    private let entries = Mutex<[Entry]>([])

    /// Remembers who has begun a job.
    func note(_ id: String, of domain: String, by session: LibvirtSession) {
        entries.withLock { entries in
            entries.append(
                Entry(id: id, domain: domain, user: session.user, process: session.process))
            entries.removeFirst(max(entries.count - Self.countMax, 0))
        }
    }

    /// Whose ended job a client means that asks for the figures of "the" job that has ended.
    enum Meaning: Sendable, Hashable {
        /// This one.
        case job(String)
        /// One of its own, whose figures have been asked for before.
        case ownIsRead
        /// It has none of its own.
        case newest
    }

    /// The ended job that a client means (`ended`: all of the domain, the oldest first): the newest
    /// that its connection has begun, else its process; where another user has begun the domain's
    /// newest, its user's newest, unless somebody has asked for those figures.
    func meaning(of session: LibvirtSession, domain: String, ended: [String]) -> Meaning {
        let begun = session.begunJobs
        return entries.withLock { entries in
            let known = ended.reversed().compactMap { id in
                entries.last { $0.id == id && $0.domain == domain }
            }
            let ofUser = known.filter { $0.user == session.user }
            let own =
                known.first { begun.contains($0.id) }
                ?? ofUser.first { $0.process != 0 && $0.process == session.process }
            if let own { return own.isRead ? .ownIsRead : .job(own.id) }
            guard let newest = known.first, newest.id == ended.last, newest.user != session.user,
                let ofUser = ofUser.first, !ofUser.isRead
            else { return .newest }
            return .job(ofUser.id)
        }
    }

    /// A job's figures have been asked for.
    func noteRead(_ id: String) {
        entries.withLock { entries in
            guard let index = entries.lastIndex(where: { $0.id == id }) else { return }
            entries[index].isRead = true
        }
    }
}
