import IORing
import Synchronization

/// What all rings and the control thread share.
///
/// Nothing here is touched per request.
final class ServerShared: Sendable {
    let mailboxes: [Mailbox<RingMessage>]
    let maxConnections: Int
    let security: SecurityStore
    let connectionCount = Atomic<Int>(0)
    private let nextRing = Atomic<Int>(0)
    private let handler = Mutex<(@Sendable (ServerEvent) -> Void)?>(nil)

    init(rings: Int, maxConnections: Int, security: SecurityStore) throws(SystemFault) {
        self.security = security
        var boxes: [Mailbox<RingMessage>] = []
        for _ in 0..<rings { boxes.append(try Mailbox()) }
        mailboxes = boxes
        self.maxConnections = maxConnections
    }

    /// The ring for the next connection or disk: they are spread evenly.
    func pickRing() -> Int {
        let number = nextRing.add(1, ordering: .relaxed).oldValue
        return Int(UInt(bitPattern: number) % UInt(mailboxes.count))
    }

    func setEventHandler(_ new: @escaping @Sendable (ServerEvent) -> Void) {
        handler.withLock { $0 = new }
    }

    func emit(_ event: ServerEvent) {
        let handler = handler.withLock { $0 }
        handler?(event)
    }

    /// Counts a new connection in; false when the server is full.
    func admitConnection() -> Bool {
        let count = connectionCount.add(1, ordering: .relaxed).newValue
        if count <= maxConnections { return true }
        connectionCount.subtract(1, ordering: .relaxed)
        return false
    }

    func dropConnection() { connectionCount.subtract(1, ordering: .relaxed) }
}
