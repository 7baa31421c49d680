package import Foundation

/// A guest whose file systems are frozen, or may be.
package struct StoredFreeze: Sendable, Hashable, Codable {
    package var uuid: String
    package var domain: String
    package var since: Date

    package init(uuid: String, domain: String, since: Date = Date()) {
        self.uuid = uuid
        self.domain = domain
        self.since = since
    }
}

/// Which guests may be frozen: written before they are, so that a crash leaves none behind.
///
/// Calls may wait as long as the storage does.
package protocol FreezeNotes: Sendable {
    /// Notes that a guest is about to be frozen.
    func save(_ freeze: StoredFreeze) throws(ControlError)
    /// Forgets a guest that is thawed.
    func removeFreeze(of uuid: String) throws(ControlError)
    /// Whether there is a note of a guest, be it one that cannot be read.
    func hasFreeze(of uuid: String) -> Bool
    /// Guests that an earlier run may have left frozen.
    func freezes() -> StateDirectory.Contents<StoredFreeze>
}

extension StateDirectory: FreezeNotes {
    private var frozenPath: String { path + "/frozen" }

    /// Notes that a guest is about to be frozen.
    package func save(_ freeze: StoredFreeze) throws(ControlError) {
        try save(kind: "freeze", freeze, to: file(frozenPath, freeze.uuid))
    }

    /// Forgets a guest that is thawed.
    package func removeFreeze(of uuid: String) throws(ControlError) {
        try remove(file(frozenPath, uuid), in: frozenPath)
    }

    /// Whether there is a note of a guest, be it one that cannot be read.
    package func hasFreeze(of uuid: String) -> Bool {
        SystemCalls.identity(of: file(frozenPath, uuid)) != nil
    }

    /// Guests that an earlier run may have left frozen.
    package func freezes() -> Contents<StoredFreeze> {
        load(kind: "freeze", StoredFreeze.self, from: frozenPath)
    }
}
