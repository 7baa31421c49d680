import NBDProtocol
import ServerInterface
import SystemLayer
import Tables

/// Peers that are too slow, silent or gone lose their connection.
///
/// Live exports know no deadline once an export is chosen: a guest may be idle or paused for as
/// long as it likes, and what it can make the server hold is bounded.
extension RingLoop where IO: ~Copyable {
    mutating func checkDeadline(_ slot: ConnectionIndex) {
        if let end = connections[slot].phaseEnd {
            if now > end { close(slot) }
        } else if connections[slot].phase == .transmission, isOverdue(slot) || hasHungUp(slot) {
            close(slot)
        }
    }

    /// Whether a backup client has let its time pass.
    private mutating func isOverdue(_ slot: ConnectionIndex) -> Bool {
        guard connections[slot].scope.jobID != nil else { return false }
        let limits = shared.configuration
        let silence = now - min(now, connections[slot].lastProgress)
        if owesBytes(slot) {
            return limits.stallSeconds > 0
                && silence > UInt64(limits.stallSeconds) * 1_000_000_000
        }
        return limits.idleSeconds > 0 && connections[slot].transmission.requestCount == 0
            && silence > UInt64(limits.idleSeconds) * 1_000_000_000
    }

    /// Whether it is the peer's turn: it has replies to take or has begun a message.
    private mutating func owesBytes(_ slot: ConnectionIndex) -> Bool {
        if hasUnsent(slot) { return true }
        guard connections[slot].inbox.isReceiving else { return false }
        let isSkipping = connections[slot].transmission.reader?.isSkipping ?? false
        return isSkipping || connections[slot].inbox.receiving != .input
            || connections[slot].inbox.count > 0
    }

    /// A peer from which nothing is received now, as its requests wait, may be gone: then they need
    /// not be carried out.
    private mutating func hasHungUp(_ slot: ConnectionIndex) -> Bool {
        guard !connections[slot].inbox.isReceiving, connections[slot].transmission.requestCount > 0,
            now - min(now, connections[slot].lastProgress) > Limits.hangUpCheckNanoseconds,
            // Once a second, not all connections in the same tick.
            (tickCount + slot.number) % (1_000 / Limits.tickMilliseconds) == 0
        else { return false }
        return io.hasHungUp(connections[slot].socket)
    }
}
