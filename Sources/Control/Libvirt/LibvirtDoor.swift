import LibvirtProtocol
import NIOCore
import Synchronization

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
    /// Where there is none, the oldest of those that have not been opened in good time makes way.
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
                let oldest = state.guests
                    .filter { !$0.value.isOpen && $0.value.since < latest }
                    .filter { !isOwnOnly || $0.value.user == session.user }
                    .min { $0.value.since < $1.value.since }
                guard let oldest else { return (nil, nil) }
                state.guests[oldest.key] = nil
                evicted = oldest.value.channel
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
