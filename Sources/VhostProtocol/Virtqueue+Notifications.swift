// Notifications in both directions, and when to suppress them (virtio 2.7.7 and 2.7.10).
//
// Both directions work alike. One side publishes an index, then checks whether the other wants a
// notification; the other asks for a notification, then checks the index again. Both put a full
// fence between store and load, so at least one of them sees the other's store and no wake-up is
// lost.

extension Virtqueue {
    /// Whether the guest wants a notification for what was published since the last call.
    @inlinable
    mutating func wantsCall<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) -> Bool {
        memory.fence()
        guard hasEventIndex else {
            return memory.load16(available) & SplitRing.noInterruptFlag == 0
        }
        let event = memory.load16(
            available.advanced(
                by: SplitRing.elementsOffset &+ UInt64(size) &* SplitRing.availableElementBytes))
        guard let last = notifiedIndex else {
            notifiedIndex = usedIndex
            return true
        }
        let isWanted = Self.hasPassed(event, from: last, to: usedIndex)
        // Even if not notified: the guest asked for a later index.
        notifiedIndex = usedIndex
        return isWanted
    }

    /// Whether moving an index from `last` to `now` passes `event + 1`.
    @inlinable
    static func hasPassed(_ event: UInt16, from last: UInt16, to now: UInt16) -> Bool {
        now &- event &- 1 < now &- last
    }

    /// Asks the guest not to kick while the ring is being processed.
    ///
    /// The guest may kick anyway.
    @inlinable
    public mutating func suppressKicks<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) {
        guard hasEventIndex else { return memory.store16(SplitRing.noNotifyFlag, used) }
        // A stale event index does the same: the guest passes it only once per 65,536 chains. The
        // one asked for is stale once a chain has been taken, not before.
        guard wantsKick else { return }
        wantsKick = false
        memory.store16(takenAvailable &- 1, kickEvent)
    }

    /// Where the guest finds the index whose passing it kicks for.
    @inlinable var kickEvent: GuestPlace {
        used.advanced(
            by: SplitRing.elementsOffset &+ UInt64(size) &* SplitRing.usedElementBytes)
    }

    /// Asks the guest to kick for the next chain, then checks the ring again.
    ///
    /// Returns whether a chain is already there.
    ///
    /// The caller may wait for a kick only if it returns false.
    @inlinable
    public mutating func wantKicks<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) throws(VirtqueueFault) -> Bool {
        if hasEventIndex {
            wantsKick = true
            memory.store16(takenAvailable, kickEvent)
        } else {
            memory.store16(0, used)
        }
        memory.fence()
        return try hasNext(memory)
    }
}
