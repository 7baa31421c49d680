import IORing
import Synchronization

/// What all rings and the control thread share.
///
/// Nothing here is touched per request.
final class ServerShared: Sendable {
    let mailboxes: [Mailbox<RingMessage>]
    let configuration: ServerConfiguration
    let security: SecurityStore
    let counts: ConnectionCounts
    /// Listeners wait until a connection goes.
    let acceptWaits = Atomic<Bool>(false)
    private let nextRing = Atomic<Int>(0)
    private let handler = Mutex<(@Sendable (ServerEvent) -> Void)?>(nil)

    init(rings: Int, _ configuration: ServerConfiguration, security: SecurityStore)
        throws(SystemFault)
    {
        self.security = security
        var boxes: [Mailbox<RingMessage>] = []
        for _ in 0..<rings { boxes.append(try Mailbox()) }
        mailboxes = boxes
        self.configuration = configuration
        counts = ConnectionCounts(configuration)
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

    /// A connection is gone: whoever waits for its place is told.
    func drop(_ scope: ExportScope, _ peer: PeerAddress?, inHandshake: Bool) {
        counts.drop(scope, peer, inHandshake: inHandshake)
        if acceptWaits.exchange(false, ordering: .acquiringAndReleasing) {
            mailboxes[0].post(.resumeAccepting)
        }
    }
}
