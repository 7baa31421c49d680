import NBDProtocol
import Synchronization

/// What a name on a listener leads to.
enum ExportTarget: Sendable {
    case live(LiveExport)
    case backup(BackupExport)

    var description: ExportDescription {
        switch self {
        case .live(let export): export.description
        case .backup(let export): export.description
        }
    }

    var id: ExportID {
        switch self {
        case .live(let export): export.id
        case .backup(let export): export.id
        }
    }
}

extension ExportTarget {
    /// Whether a client that was told `agreed` can be served: the disk may have grown since, the
    /// client then goes on with the size it knows.
    func fits(_ agreed: ExportDescription) -> Bool {
        agreed.sizeBytes <= description.sizeBytes
    }
}

/// Names one export for as long as the server runs.
struct ExportID: Hashable, Sendable {
    let number: UInt64
    private static let last = Atomic<UInt64>(0)

    static func next() -> ExportID {
        ExportID(number: last.add(1, ordering: .relaxed).newValue)
    }
}

/// The exports that one listener shows: all live exports, or those of one job.
///
/// Looked into at negotiation only, never per request.
final class ExportScope: Sendable {
    /// The job whose exports these are; nil for live exports.
    let jobID: String?
    /// Connections that came by this listener, and those of them that have not chosen an export.
    let connections = Atomic<Int>(0)
    let handshakes = Atomic<Int>(0)
    /// The job's domain; live exports have theirs in their names.
    let domain: String?
    /// What the rings of its connections are for.
    var duty: RingDuty { jobID == nil ? .guests : .backups }
    private let targets = Mutex<[String: ExportTarget]>([:])
    /// Names that are to come soon, and whether there are any.
    private let awaited = Mutex<Awaited>(Awaited())
    let awaitsAny = Atomic<Bool>(false)

    private struct Awaited {
        var names: Set<String> = []
        /// Those of them that somebody has asked for.
        var asked: Set<String> = []
    }

    init(jobID: String?, domain: String? = nil) {
        self.jobID = jobID
        self.domain = domain
    }

    /// Publishes an export; false when the name is taken.
    func add(_ target: ExportTarget) -> Bool {
        targets.withLock { targets in
            if targets[target.description.name] != nil { return false }
            targets[target.description.name] = target
            return true
        }
    }

    func remove(name: String) { targets.withLock { _ = $0.removeValue(forKey: name) } }

    func removeAll() { targets.withLock { $0.removeAll() } }

    func target(named name: String) -> ExportTarget? { targets.withLock { $0[name] } }

    /// Whoever asks for one of these names waits for it from now on.
    func awaitNames(_ names: Set<String>) {
        awaited.withLock { awaited in
            awaited.names = names
            awaited.asked.formIntersection(names)
            awaitsAny.store(!names.isEmpty, ordering: .relaxed)
        }
    }

    /// A name has come, or does not come any more; whether anybody may have waited for it.
    func stopAwaiting(_ name: String) -> Bool {
        awaited.withLock { awaited in
            awaited.asked.remove(name)
            guard awaited.names.remove(name) != nil else { return false }
            awaitsAny.store(!awaited.names.isEmpty, ordering: .relaxed)
            return true
        }
    }

    func isAwaited(_ name: String) -> Bool { awaited.withLock { $0.names.contains(name) } }

    /// A peer that may use it waits for a name.
    fileprivate func noteAsked(_ name: String) {
        awaited.withLock { if $0.names.contains(name) { $0.asked.insert(name) } }
    }

    /// Whether somebody waits for a name that is to come soon.
    func isAskedFor(_ name: String) -> Bool {
        awaitsAny.load(ordering: .relaxed) && awaited.withLock { $0.asked.contains(name) }
    }

    var all: [ExportTarget] { targets.withLock { Array($0.values) } }
}

/// A peer has asked for an export that is to come soon.
final class MissedExport: Sendable {
    private let isNoted = Atomic<Bool>(false)
    var isMissed: Bool { isNoted.load(ordering: .relaxed) }
    func note() { isNoted.store(true, ordering: .relaxed) }
}

/// The exports of a scope that one peer may use; the others are not there for it.
struct PermittedExports: ExportDirectory {
    let scope: ExportScope
    let rights: AccessRights
    /// Told when the peer asks for one that is to come soon.
    var missed: MissedExport?

    func listings() -> [ExportListing] {
        scope.all.filter(isPermitted).map(\.description).sorted { $0.name < $1.name }
            .map { ExportListing(name: $0.name, description: $0.description) }
    }

    func export(named name: String) -> ExportDescription? {
        // Before the look: one that comes in between is found.
        let isAwaited = missed != nil && scope.isAwaited(name) && isPermitted(live: name)
        let found = scope.target(named: name).flatMap { isPermitted($0) ? $0.description : nil }
        if found == nil, isAwaited {
            scope.noteAsked(name)
            missed?.note()
        }
        return found
    }

    /// Whether the peer may use an export.
    func isPermitted(_ target: ExportTarget) -> Bool {
        let name = target.description.name
        switch target {
        case .backup:
            return rights.permit(.backup, domain: scope.domain ?? "", name: name)
        case .live: return isPermitted(live: name)
        }
    }

    private func isPermitted(live name: String) -> Bool {
        // DOMAIN/DISK; one file served by itself belongs to no domain.
        guard let slash = name.firstIndex(of: "/") else {
            return rights.permit(.live, domain: "", name: name)
        }
        return rights.permit(
            .live, domain: String(name[..<slash]),
            name: String(name[name.index(after: slash)...]))
    }
}
