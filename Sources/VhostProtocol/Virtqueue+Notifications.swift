// Who tells whom, and when it may be left out (virtio 2.7.7 and 2.7.10).
//
// Both directions have the same shape: one side publishes an index and then looks whether the other
// wants to be told; the other says that it wants to be told and then looks at the index again. Each
// puts a fence between its store and its load, so at least one of them sees the other's store, and
// no wake-up is lost.

extension Virtqueue {
    /// Whether the guest wants to be notified of what was published since it was notified last.
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
        // What was not told counts as told: the guest has asked for a later index.
        notifiedIndex = usedIndex
        return isWanted
    }

    /// Whether an index that moves from `last` to `now` passes the one behind `event`.
    @inlinable
    static func hasPassed(_ event: UInt16, from last: UInt16, to now: UInt16) -> Bool {
        now &- event &- 1 < now &- last
    }

    /// Asks the guest not to kick: the ring is looked at anyway.
    ///
    /// A kick may come all the same.
    @inlinable
    public mutating func suppressKicks<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) {
        // With event indices an old one does it: the guest passes it once in 65,536 chains.
        guard !hasEventIndex else { return }
        memory.store16(SplitRing.noNotifyFlag, used)
    }

    /// Asks the guest to kick for the next chain, and looks once more; whether a chain is there
    /// already.
    ///
    /// Only after false may the caller wait for the kick.
    @inlinable
    public mutating func wantKicks<Memory: GuestMemory & ~Copyable>(
        _ memory: borrowing Memory
    ) throws(VirtqueueFault) -> Bool {
        if hasEventIndex {
            memory.store16(
                takenAvailable,
                used.advanced(
                    by: SplitRing.elementsOffset &+ UInt64(size) &* SplitRing.usedElementBytes))
        } else {
            memory.store16(0, used)
        }
        memory.fence()
        return try hasNext(memory)
    }
}
