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
    private let targets = Mutex<[String: ExportTarget]>([:])

    init(jobID: String?) { self.jobID = jobID }

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
}

extension ExportScope: ExportDirectory {
    func listings() -> [ExportListing] {
        let descriptions = targets.withLock { $0.values.map(\.description) }
        return descriptions.sorted { $0.name < $1.name }
            .map { ExportListing(name: $0.name, description: $0.description) }
    }

    func export(named name: String) -> ExportDescription? { target(named: name)?.description }
}
