import Foundation
import Synchronization

/// The recent events and their followers.
///
/// Bounded on both sides: the log keeps `capacity` events, and a follower that reads slower than
/// events come loses the oldest of its backlog (seen as a gap in `sequence`), never anybody else's.
///
/// The newest are kept, but events that whoever reaches a socket can cause at will take at most half
/// of the log from others: nobody who connects again and again pushes out that a backup has broken.
package final class EventLog: Sendable {
    /// Events kept for late readers.
    package static let capacityDefault = 1024
    /// Events waiting for one follower before its oldest are dropped.
    package static let followerBacklogMax = 1024
    /// Followers at once; each costs a connection and a backlog.
    package static let followersMax = 64

    fileprivate struct State {
        var recent: [ControlEvent] = []
        /// Of those, events that peers cause.
        var recentOfPeers = 0
        var nextSequence: UInt64 = 1
        var counts: [ControlEvent.Kind: UInt64] = [:]
        var nextFollower: UInt64 = 0
        var followers: [UInt64: AsyncStream<ControlEvent>.Continuation] = [:]
        var closed = false
    }

    private let capacity: Int
    private let sink: @Sendable (ControlEvent) -> Void
    private let state = Mutex(State())

    /// - Parameter sink: handed every event in its order; it must not wait for anything.
    package init(
        capacity: Int = EventLog.capacityDefault,
        sink: @escaping @Sendable (ControlEvent) -> Void = { _ in }
    ) {
        self.capacity = max(capacity, 1)
        self.sink = sink
    }

    /// Adds an event; gives it its sequence number and time.
    package func append(_ event: ControlEvent) {
        state.withLock { state in
            var event = event
            event.sequence = state.nextSequence
            event.time = Date()
            state.nextSequence += 1
            state.counts[event.event, default: 0] += 1
            state.recent.append(event)
            if event.event.isOfPeers { state.recentOfPeers += 1 }
            if state.recent.count > capacity { state.forgetOne(capacity) }
            for follower in state.followers.values { follower.yield(event) }
            sink(event)
        }
    }

    /// The events kept, oldest first.
    package var recent: [ControlEvent] { state.withLock { $0.recent } }

    /// Events kept with a higher number, at most `max`, oldest first; which, as in the log.
    package func later(than sequence: UInt64, max: Int) -> [ControlEvent] {
        var part = State()
        part.recent = state.withLock { Array($0.recent.drop { $0.sequence <= sequence }) }
        part.recentOfPeers = part.recent.count(where: \.event.isOfPeers)
        while part.recent.count > max { part.forgetOne(max) }
        return part.recent
    }

    /// How many events of each kind there were since the server started.
    package var counts: [ControlEvent.Kind: UInt64] { state.withLock { $0.counts } }

    /// How many events there were since the server started.
    package var totalCount: UInt64 { state.withLock { $0.nextSequence - 1 } }

    /// The events from now on, until the reader stops or the log is closed.
    package func follow() throws(ControlError) -> AsyncStream<ControlEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: ControlEvent.self, bufferingPolicy: .bufferingNewest(Self.followerBacklogMax))
        let number: UInt64? = state.withLock { state in
            guard state.followers.count < Self.followersMax else { return nil }
            guard !state.closed else {
                continuation.finish()
                return UInt64.max
            }
            state.nextFollower += 1
            state.followers[state.nextFollower] = continuation
            return state.nextFollower
        }
        guard let number else {
            throw ControlError(
                code: "too-many-followers", libvirtCode: 55,
                message: "Requested operation is not valid: \(Self.followersMax) clients "
                    + "follow the events already; end one of them first",
                httpStatus: 503)
        }
        continuation.onTermination = { [weak self] _ in
            _ = self?.state.withLock { $0.followers.removeValue(forKey: number) }
        }
        return stream
    }

    /// Ends every follower's stream; others may follow.
    package func endStreams() { end(isLast: false) }

    /// Ends every follower's stream, for good.
    package func close() { end(isLast: true) }

    private func end(isLast: Bool) {
        let followers = state.withLock { state in
            if isLast { state.closed = true }
            defer { state.followers = [:] }
            return Array(state.followers.values)
        }
        for follower in followers { follower.finish() }
    }
}

extension EventLog.State {
    /// Forgets the oldest event; of those that peers cause, where they take more than their half.
    fileprivate mutating func forgetOne(_ capacity: Int) {
        let hasMany = recentOfPeers > capacity / 2
        let place = hasMany ? recent.firstIndex(where: \.event.isOfPeers) : nil
        let gone = recent.remove(at: place ?? 0)
        if gone.event.isOfPeers { recentOfPeers -= 1 }
    }
}
