import Tracking
import TrackingFiles

/// A driver of `WriteIntent` with a disk whose cache is lost when the power is cut.
///
/// Blocks and regions fit one word each. Writers run one after another through lists of writes;
/// every write has a name of its own.
struct IntentWorld: Hashable {
    /// Ways to do it wrong, to prove that they are noticed.
    enum Defect: Hashable { case passesEarly, skipsSync, setsBitsLate, declaresLate }
    enum Phase: Hashable { case idle, waits, submitted }
    enum Event: Hashable {
        case start(writer: Int)
        case dataWritten(writer: Int)
        case pull
        case logWritten(succeeded: Bool)
        case bitsSynced(succeeded: Bool)
        /// No thread or descriptor was to be had for it.
        case bitsNotSynced
        case startClearing
        /// The log write takes too long.
        case overdue
        /// It is said durably that tracking is lost.
        case declared
    }

    struct Writer: Hashable {
        /// Blocks of each write still to come.
        var script: [Range<Int>]
        var phase = Phase.idle
    }

    let regionShift: Int
    let blockCount: Int
    var defect: Defect?
    var intent: WriteIntent
    var writers: [Writer]
    var clearingsLeft: Int
    var faultsLeft: Int
    var logWrites = 0

    /// Every content that the log may have after a cut.
    var possibleLogs: Set<UInt64> = [0]
    var isLogInFlight = false
    var writingLog: UInt64 = 0
    /// Fine bits in memory, those certainly durable, and those that the sync in flight covers.
    var bits: UInt64 = 0
    var durableBits: UInt64 = 0
    var syncing: UInt64?
    var isSyncBelievable = true
    /// Blocks whose write was submitted: any of it may have reached the disk.
    var submitted: UInt64 = 0
    var isLossAsked = false
    var isLossDeclared = false
    var problem: String?

    init(
        blocks: Int, regionShift: Int, scripts: [[Range<Int>]], clearings: Int, faults: Int,
        defect: Defect? = nil
    ) {
        self.regionShift = regionShift
        blockCount = blocks
        self.defect = defect
        let regions = (blocks + (1 << regionShift) - 1) >> regionShift
        intent = WriteIntent(regionCount: regions, changeLimit: scripts.count)
        writers = scripts.map { Writer(script: $0) }
        clearingsLeft = clearings
        faultsLeft = faults
    }

    static func mask(_ blocks: Range<Int>) -> UInt64 {
        blocks.reduce(0) { $0 | 1 << UInt64($1) }
    }

    func regions(_ blocks: Range<Int>) -> Range<Int> {
        (blocks.lowerBound >> regionShift)..<(((blocks.upperBound - 1) >> regionShift) + 1)
    }

    /// What can happen next.
    var events: [Event] {
        var events: [Event] = []
        for (index, writer) in writers.enumerated() {
            switch writer.phase {
            case .idle: if !writer.script.isEmpty { events.append(.start(writer: index)) }
            case .waits: break
            case .submitted: events.append(.dataWritten(writer: index))
            }
        }
        var asked = intent
        if asked.nextAction() != nil { events.append(.pull) }
        if isLogInFlight {
            events.append(.logWritten(succeeded: true))
            if faultsLeft > 0 { events.append(.logWritten(succeeded: false)) }
        }
        if syncing != nil {
            events.append(.bitsSynced(succeeded: true))
            if faultsLeft > 0 {
                events.append(.bitsSynced(succeeded: false))
                events.append(.bitsNotSynced)
            }
        }
        if isLogInFlight, faultsLeft > 0, intent.isAwaited { events.append(.overdue) }
        if isLossAsked, !isLossDeclared { events.append(.declared) }
        if clearingsLeft > 0 { events.append(.startClearing) }
        return events
    }

    mutating func perform(_ event: Event) {
        switch event {
        case .start(let index):
            let blocks = writers[index].script[0]
            let admission = intent.admit(ChangeID(index), regions: regions(blocks))
            if admission == .go || defect == .passesEarly { submit(index) }
            if admission == .waits, defect != .passesEarly { writers[index].phase = .waits }
        case .dataWritten(let index):
            let blocks = writers[index].script.removeFirst()
            if defect == .setsBitsLate { bits |= Self.mask(blocks) }
            writers[index].phase = .idle
            intent.finished(regions: regions(blocks))
        case .pull:
            if let action = intent.nextAction() { perform(action) }
        case .logWritten(let succeeded):
            isLogInFlight = false
            if succeeded { possibleLogs = [writingLog] } else { faultsLeft -= 1 }
            writingLog = 0
            intent.logWritten(succeeded: succeeded)
        case .bitsSynced(let succeeded):
            // A failed write-back leaves pages that look clean: later syncs do nothing for them.
            if !succeeded {
                faultsLeft -= 1
                isSyncBelievable = false
            }
            if let syncing, isSyncBelievable, defect != .skipsSync { durableBits |= syncing }
            syncing = nil
            intent.bitsSynced(succeeded: succeeded)
        case .bitsNotSynced:
            faultsLeft -= 1
            syncing = nil
            intent.bitsNotSynced()
        case .startClearing:
            clearingsLeft -= 1
            intent.startClearing()
        case .overdue:
            faultsLeft -= 1
            intent.giveUp()
        case .declared:
            isLossDeclared = true
            if defect != .declaresLate { intent.lossDeclared() }
        }
    }

    private mutating func perform(_ action: IntentAction) {
        switch action {
        case .writeLog:
            if isLogInFlight { problem = "two log writes at once" }
            isLogInFlight = true
            logWrites += 1
            writingLog = intent.words[0]
            possibleLogs.insert(writingLog)
        case .syncBits:
            if syncing != nil { problem = "two syncs at once" }
            syncing = bits
        case .pass(let change):
            if defect == .passesEarly { return }
            if writers[change.number].phase != .waits {
                problem = "a write passes that does not wait"
            }
            submit(change.number)
        case .trackingLost:
            if isLossAsked { problem = "the loss is declared twice" }
            isLossAsked = true
            if defect == .declaresLate { intent.lossDeclared() }
        }
    }

    private mutating func submit(_ writer: Int) {
        writers[writer].phase = .submitted
        let blocks = Self.mask(writers[writer].script[0])
        if defect != .setsBitsLate { bits |= blocks }
        submitted |= blocks
    }

    /// All blocks of the regions that a log marks.
    private func blocks(markedBy log: UInt64) -> UInt64 {
        (0..<blockCount).reduce(0) { mask, block in
            log >> UInt64(block >> regionShift) & 1 == 1 ? mask | 1 << UInt64(block) : mask
        }
    }

    /// Cuts the power here, in every way: each content of the log with each subset of the fine bits
    /// that are not certainly durable.
    ///
    /// Which data writes persisted does not matter: every submitted one counts as persisted.
    /// Returns what is missed in the worst case, or 0.
    func missedAfterCut(everySubset: Bool) -> UInt64 {
        if isLossDeclared { return 0 }
        // A killed process loses neither bits in memory nor marks; the bits alone must do then.
        if submitted & ~bits != 0 { return submitted & ~bits }
        let volatileBits = bits & ~durableBits
        for log in possibleLogs {
            let marked = blocks(markedBy: log)
            var subset = everySubset ? volatileBits : 0
            while true {
                let missed = submitted & ~(durableBits | subset | marked)
                if missed != 0 { return missed }
                if subset == 0 { break }
                subset = (subset - 1) & volatileBits
            }
        }
        return 0
    }

    /// Whether everything ended well: nothing can happen, and no write is left waiting.
    var isAtRest: Bool { writers.allSatisfy { $0.script.isEmpty && $0.phase == .idle } }
}
