import SystemLayer
import Tables

/// A ring on a thread of its own.
extension RingLoop where IO == KernelIO {
    /// Runs until told to stop and the last connection is gone.
    mutating func run() {
        WorkerThread.serveMany()
        switch shared.layout.duty(of: index) {
        case .guests: WorkerThread.preferShortSlices()
        case .backups: WorkerThread.giveWay()
        }
        begin()
        while !isFinished {
            if wantsTurn { io.submit(waiting: false) } else { awaitCompletions() }
            turn()
        }
        end()
    }

    /// Submits what was prepared, and comes back when there is something to do.
    private mutating func awaitCompletions() {
        if letGuestsGoOn() { return }
        let begun = io.now()
        let kind = kindOfWait(begun)
        let limit = kind.map { briefWaits[$0.rawValue].nanoseconds } ?? 0
        if let kind, limit > 0 {
            repeat {
                io.submit(waiting: false)
                let count = io.completionCount
                if count > 0 { return briefWaits[kind.rawValue].found(completions: count) }
                if !sharing.isEmpty, lookAtQueues() {
                    // A chain says nothing of the disk.
                    if kind != .disk { briefWaits[kind.rawValue].found(completions: 1) }
                    return
                }
            } while io.now() < begun + limit
            briefWaits[kind.rawValue].missed()
        }
        // From here on guests kick; one that was faster is served first.
        if !sharing.isEmpty, askForKicks() { return io.submit(waiting: false) }
        io.submit(waiting: true)
        guard let kind else { return }
        briefWaits[kind.rawValue].slept(io.now() - begun, completions: io.completionCount)
    }

    /// What the ring waits for, where a look may be shorter than a sleep.
    private mutating func kindOfWait(_ now: UInt64) -> BriefWait.Kind? {
        guard !sharing.isEmpty else { return pieces.count == 0 ? .client : nil }
        guestRate.judge(now)
        if waitsForPollersDisk { return .disk }
        // What a disk works on takes as long as it takes, and says nothing of those who wait for it.
        guard pieces.count == 0 else { return nil }
        return guestRate.isBusy ? .busyGuests : .client
    }
}
