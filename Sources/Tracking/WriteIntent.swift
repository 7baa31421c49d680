/// Whether a write may be submitted, as far as tracking is concerned.
package enum IntentAdmission: Sendable, Hashable {
    /// Every region of the write is durably marked (or tracking is lost): submit it now.
    case go
    /// It waits for the log; its `.pass` follows exactly once.
    case waits
}

/// What the write-intent log asks its driver to do; actions are performed in order.
package enum IntentAction: Sendable, Hashable {
    /// Write the log's present `words` durably (data sync or FUA), answer with `logWritten`.
    ///
    /// One at a time. The words are taken when the action is taken; the slot follows from the
    /// generation, and a write that failed is repeated with the same one, so that the other slot
    /// stays whole.
    case writeLog(generation: UInt64)
    /// Make what was written to the disk durable, then every fine bit that is set now; answer with
    /// `bitsSynced`, or `bitsNotSynced` when that could not be begun. One at a time.
    ///
    /// A mark that leaves the log before its writes are durable is missed when a loss of power
    /// undoes them.
    case syncBits
    /// The write that waited may be submitted now.
    case pass(ChangeID)
    /// The log cannot be written: from now on nothing is promised.
    ///
    /// Comes once. No write to an unmarked region goes before the driver has answered with
    /// `lossDeclared`: one that first says durably that the chain is broken misses no change. From
    /// then on no write waits.
    case trackingLost
}

/// Which regions of a disk may hold changes whose fine bits are not durable yet.
///
/// A region is marked in a log before its first write is submitted, and taken out of it when the
/// region was idle and the fine bits were synced since. After a crash, the durable fine bits and
/// all blocks of the regions that the log marks are a superset of what was written (promise P3).
///
/// The driver sets the fine bits of a write after its admission and before it submits it.
/// Invariants: a region in `durable` is marked in every content that the log can have after a
/// crash; `durable` holds every region of a write that went ahead until the fine bits of that write
/// are durable. Lives on one ring; nothing is allocated after `init`, save by `words`.
package struct WriteIntent: Sendable, Hashable {
    /// Regions of the disk.
    package let regionCount: Int
    /// Whether the log could not be written: nothing is promised any more.
    package private(set) var isLost = false
    /// Whether the fine bits could not be synced: marks are kept for good.
    ///
    /// The kernel may take pages whose write-back failed for clean, so no later sync is believed.
    package private(set) var isClearingStopped = false
    /// What the log must hold when it is next written: one bit a region, lowest region first.
    package private(set) var words: [UInt64]

    /// Generation of the newest log that was written whole.
    private var generation: UInt64
    /// Marked in the newest whole log, and in the one being written if there is one.
    private var durable: [UInt64]
    /// The log being written.
    private var writing: [UInt64]
    private var isWriting = false
    /// Slots that may still hold marks which have left `words`.
    private var slotsBehind = 0
    /// Whether marks left `words` after the log being written was taken.
    private var isWritingBehind = false
    /// Whether a log is to be written although no write waits for it.
    private var isRewriteDue = false
    /// Regions that leave the log when the sync ends, unless a write comes first.
    private var clearing: [UInt64]
    private var clearingState = ClearingState.idle
    /// Regions with an admission since the last `startClearing`.
    private var touched: [UInt64]
    /// Admitted writes that are not finished, per region.
    private var writesInFlight: [Int32]

    /// Changes that wait for the log being written, and for the next one.
    private var current = ChangeList()
    private var next = ChangeList()
    /// Changes that may go.
    private var passed = ChangeList()
    /// Links of the lists; `notWaiting` for changes in none.
    private var links: [Int32]
    private var isLossReported = false
    private var isLossDeclared = false

    private enum ClearingState: Hashable { case idle, wanted, syncing }

    private static let notWaiting: Int32 = -2
    private static let listEnd: Int32 = -1

    private struct ChangeList: Hashable {
        var head = WriteIntent.listEnd
        var tail = WriteIntent.listEnd
        var isEmpty: Bool { head == WriteIntent.listEnd }
    }

    /// Nothing is marked; the log may hold anything.
    ///
    /// `changeLimit`: changes have numbers below it. `generation`: that of the newest slot of
    /// the log as it was found, or 0 for a new one. `isAllMarked`: both slots of the log mark every
    /// region, which leaves it when it was idle, as any other does.
    package init(
        regionCount: Int, changeLimit: Int, generation: UInt64 = 0, isAllMarked: Bool = false
    ) {
        precondition(regionCount > 0 && changeLimit > 0 && changeLimit <= Int(Int32.max))
        self.regionCount = regionCount
        self.generation = generation
        let empty = [UInt64](repeating: 0, count: (regionCount + 63) / 64)
        words = isAllMarked ? Self.allMarked(regionCount) : empty
        durable = words
        writing = empty
        clearing = empty
        touched = empty
        writesInFlight = [Int32](repeating: 0, count: regionCount)
        links = [Int32](repeating: Self.notWaiting, count: changeLimit)
    }

    /// The regions of `1 << shift` bytes that a byte range touches; the range is not empty.
    package static func regions(
        touching offset: UInt64, length: UInt64, shift: UInt64
    ) -> Range<Int> {
        Int(offset >> shift)..<(Int((offset + length - 1) >> shift) + 1)
    }

    /// Marks are kept for good from now on, as after a sync that failed.
    package mutating func stopClearing() { isClearingStopped = true }

    /// One bit for each region.
    static func allMarked(_ regionCount: Int) -> [UInt64] {
        var words = [UInt64](repeating: .max, count: (regionCount + 63) / 64)
        let rest = UInt64(regionCount & 63)
        if rest != 0, let last = words.indices.last { words[last] = (1 << rest) - 1 }
        return words
    }

    /// Regions that the log marks or is about to mark.
    package var markedCount: Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }

    /// Whether an answer of the driver is due.
    package var isBusy: Bool { isWriting || clearingState == .syncing }
}

// MARK: Writes

extension WriteIntent {
    /// Asks whether a guest write, zero or discard that touches these regions may be submitted.
    ///
    /// `.go` when all of them are durably marked. The name is free for other changes after `.go`,
    /// and after its `.pass` otherwise; `finished` follows in both cases.
    package mutating func admit(_ change: ChangeID, regions: Range<Int>) -> IntentAdmission {
        precondition(!regions.isEmpty && regions.lowerBound >= 0)
        precondition(regions.upperBound <= regionCount, "region outside the disk")
        var isDurable = true
        var isBeingWritten = isWriting
        for region in regions {
            let index = region >> 6
            let bit: UInt64 = 1 << UInt64(region & 63)
            writesInFlight[region] += 1
            touched[index] |= bit
            clearing[index] &= ~bit
            words[index] |= bit
            if durable[index] & bit == 0 { isDurable = false }
            if writing[index] & bit == 0 { isBeingWritten = false }
        }
        if isDurable || isLossDeclared { return .go }
        precondition(links[change.number] == Self.notWaiting, "the change waits already")
        if isLost {
            // Not before it is said that the chain is broken.
            pass(appending(change, to: ChangeList()))
        } else if isBeingWritten {
            current = appending(change, to: current)
        } else {
            next = appending(change, to: next)
        }
        return .waits
    }

    /// The admitted write is complete, or will never be submitted.
    ///
    /// Called once for each admission, with the same regions; after its `.pass` if it has waited.
    package mutating func finished(regions: Range<Int>) {
        for region in regions {
            writesInFlight[region] -= 1
            precondition(writesInFlight[region] >= 0, "more writes finished than admitted")
        }
    }

    private mutating func appending(_ change: ChangeID, to list: ChangeList) -> ChangeList {
        let link = Int32(change.number)
        links[change.number] = Self.listEnd
        if !list.isEmpty { links[Int(list.tail)] = link }
        return ChangeList(head: list.isEmpty ? link : list.head, tail: link)
    }

    /// Every change of the list may go, after those that may already.
    private mutating func pass(_ list: ChangeList) {
        guard !list.isEmpty else { return }
        if passed.isEmpty {
            passed.head = list.head
        } else {
            links[Int(passed.tail)] = list.head
        }
        passed.tail = list.tail
    }
}

// MARK: Actions and their answers

extension WriteIntent {
    /// Takes the next action, or nil when there is nothing to do until something happens.
    ///
    /// A log write holds everything that was admitted before it is taken here, so a driver that
    /// admits all that came in and only then asks pays one log write for all of it.
    package mutating func nextAction() -> IntentAction? {
        if takeLoss() { return .trackingLost }
        if !passed.isEmpty, !isLost || isLossDeclared {
            let first = Int(passed.head)
            passed.head = links[first]
            if passed.isEmpty { passed = ChangeList() }
            links[first] = Self.notWaiting
            return .pass(ChangeID(first))
        }
        if isLost { return nil }
        if !isWriting, !next.isEmpty || isRewriteDue {
            isWriting = true
            isWritingBehind = false
            isRewriteDue = false
            current = next
            next = ChangeList()
            for index in words.indices {
                writing[index] = words[index]
                durable[index] &= words[index]
            }
            return .writeLog(generation: generation + 1)
        }
        if clearingState == .wanted {
            clearingState = .syncing
            return .syncBits
        }
        return nil
    }

    /// Takes `.trackingLost` before its turn; true when it was owed.
    package mutating func takeLoss() -> Bool {
        guard isLost, !isLossReported else { return false }
        isLossReported = true
        return true
    }

    /// Writes wait for the log that is being written.
    package var isAwaited: Bool { isWriting && !isLost && !(current.isEmpty && next.isEmpty) }

    /// The log write has taken too long, or cannot be begun: the tracking is lost, and the writes
    /// that wait go once that is declared.
    ///
    /// Its `logWritten` may still come.
    package mutating func giveUp() {
        guard !isLost else { return }
        isLost = true
        pass(current)
        pass(next)
        current = ChangeList()
        next = ChangeList()
    }

    /// It is said, as durably as can be, that the chain is broken: the writes that wait may go.
    package mutating func lossDeclared() { isLossDeclared = isLossReported }

    /// The log is durable as `words` were when the write was taken, or may be not.
    ///
    /// A failure with writes waiting for it loses the tracking; a failure that only would have
    /// taken marks out leaves them in.
    package mutating func logWritten(succeeded: Bool) {
        precondition(isWriting, "no log write is in flight")
        isWriting = false
        if isLost { return }
        let waiting = current
        current = ChangeList()
        if succeeded {
            generation += 1
            for index in writing.indices {
                durable[index] = writing[index]
                writing[index] = 0
            }
            if slotsBehind > 0, !isWritingBehind { slotsBehind -= 1 }
        } else if waiting.isEmpty {
            // Every mark is still in the other slot; `startClearing` asks for the next attempt.
            for index in writing.indices { writing[index] = 0 }
        } else {
            isLost = true
        }
        pass(waiting)
        if isLost {
            pass(next)
            next = ChangeList()
        }
    }

    /// Begins to take idle regions out of the log: those with no write in flight and none since the
    /// last call.
    ///
    /// Called now and then, by a timer; does nothing while an earlier call is still at work.
    package mutating func startClearing() {
        guard !isLost, !isClearingStopped, clearingState == .idle else { return }
        // A mark is gone for good when neither slot has it: the older slot follows a call later.
        if slotsBehind > 0 { isRewriteDue = true }
        var isAny = false
        for index in words.indices {
            clearing[index] = idleRegions(words[index] & ~touched[index], word: index)
            touched[index] = 0
            if clearing[index] != 0 { isAny = true }
        }
        if isAny { clearingState = .wanted }
    }

    private func idleRegions(_ candidates: UInt64, word index: Int) -> UInt64 {
        var idle: UInt64 = 0
        var left = candidates
        while left != 0 {
            let bit = left.trailingZeroBitCount
            left &= left - 1
            if writesInFlight[index << 6 + bit] == 0 { idle |= 1 << UInt64(bit) }
        }
        return idle
    }

    /// The fine bits that were set when the sync was taken are durable, or may be not.
    ///
    /// After a failure no mark is ever taken out again.
    package mutating func bitsSynced(succeeded: Bool) {
        precondition(clearingState == .syncing, "no sync is in flight")
        clearingState = .idle
        if !succeeded { isClearingStopped = true }
        for index in clearing.indices {
            // A region that was written to since has left `clearing` in `admit`.
            if succeeded, clearing[index] != 0 {
                words[index] &= ~clearing[index]
                slotsBehind = 2
                isWritingBehind = true
                isRewriteDue = true
            }
            clearing[index] = 0
        }
    }

    /// The sync could not be begun, which says nothing of the disk: marks stay, and a later
    /// `startClearing` asks again.
    package mutating func bitsNotSynced() {
        precondition(clearingState == .syncing, "no sync is in flight")
        clearingState = .idle
        for index in clearing.indices { clearing[index] = 0 }
    }
}
