import LibvirtProtocol
import NIOCore
import Synchronization
import Tables

/// Who is connected to the libvirt door, within its limits.
final class LibvirtDoor: Sendable {
    private struct Guest {
        let user: UInt32
        let since: NIODeadline
        let session: LibvirtSession
        let channel: any Channel
        var isOpen = false
    }

    private struct State {
        var guests: [UInt64: Guest] = [:]
        var lastNumber: UInt64 = 0
        var callCount = 0
    }

    let context: LibvirtContext
    private let state = Mutex(State())

    init(context: LibvirtContext) { self.context = context }

    /// All connections' sessions.
    var sessions: [LibvirtSession] { state.withLock { $0.guests.values.map(\.session) } }

    /// Calls of all connections that are in progress.
    var callCount: Int { state.withLock { $0.callCount } }

    func callBegan() { state.withLock { $0.callCount += 1 } }

    func callEnded() { state.withLock { $0.callCount -= 1 } }

    /// Lets a connection in and returns its number; nil when there is no room.
    ///
    /// Where there is none, one that has not been opened in good time makes way: the oldest of the
    /// process that has most of them.
    func admit(_ session: LibvirtSession, _ channel: any Channel) -> UInt64? {
        let (number, evicted) = state.withLock { state -> (UInt64?, (any Channel)?) in
            let own = state.guests.values.count { $0.user == session.user }
            var evicted: (any Channel)?
            if state.guests.count >= LibvirtLimits.connectionsMax
                || own >= LibvirtLimits.connectionsPerUser
            {
                let isOwnOnly = own >= LibvirtLimits.connectionsPerUser
                let latest =
                    NIODeadline.now()
                    - .milliseconds(
                        Int64(LibvirtLimits.evictionMilliseconds))
                var eviction = Eviction<UInt64, Int32>()
                for (number, guest) in state.guests
                where !guest.isOpen && (!isOwnOnly || guest.user == session.user) {
                    eviction.add(
                        number, of: guest.session.process,
                        quietSince: guest.since.uptimeNanoseconds, mayGo: guest.since < latest)
                }
                guard let chosen = eviction.choice else { return (nil, nil) }
                evicted = state.guests.removeValue(forKey: chosen)?.channel
            }
            state.lastNumber += 1
            state.guests[state.lastNumber] = Guest(
                user: session.user, since: .now(), session: session, channel: channel)
            return (state.lastNumber, evicted)
        }
        evicted?.close(promise: nil)
        return number
    }

    /// A connection has been opened: it makes way for nobody any more.
    func opened(_ number: UInt64) { state.withLock { $0.guests[number]?.isOpen = true } }

    /// A connection has ended.
    func left(_ number: UInt64) { state.withLock { _ = $0.guests.removeValue(forKey: number) } }

    /// Closes all connections.
    func closeAll() {
        for guest in state.withLock({ Array($0.guests.values) }) {
            guest.channel.close(promise: nil)
        }
    }
}
