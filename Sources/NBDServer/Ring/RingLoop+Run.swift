import SystemLayer
import Tables

/// A ring on a thread of its own.
extension RingLoop where IO == KernelIO {
    /// Runs until told to stop and the last connection is gone.
    mutating func run() {
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
        if waitsForPollersDisk { return awaitDisk() }
        // What the kernel works on takes as long as it takes, and a processor perhaps.
        let isForClients = pieces.count == 0
        let limit = isForClients ? briefWait.nanoseconds : 0
        let begun = io.now()
        if limit > 0 {
            repeat {
                io.submit(waiting: false)
                let count = io.completionCount
                if count > 0 { return briefWait.found(completions: count) }
                if !sharing.isEmpty, lookAtQueues() { return briefWait.found(completions: 1) }
            } while io.now() < begun + limit
            briefWait.missed()
        }
        // From here on guests kick; one that was faster is served first.
        if !sharing.isEmpty, askForKicks() { return io.submit(waiting: false) }
        io.submit(waiting: true)
        // How long a disk takes says nothing of those who wait for it.
        if isForClients {
            briefWait.slept(io.now() - begun, completions: io.completionCount)
        }
    }

    /// The same while a guest that polls waits for one answer of a disk's.
    private mutating func awaitDisk() {
        let limit = diskWait.nanoseconds
        let begun = io.now()
        if limit > 0 {
            repeat {
                io.submit(waiting: false)
                let count = io.completionCount
                if count > 0 { return diskWait.found(completions: count) }
                if lookAtQueues() { return }
            } while io.now() < begun + limit
            diskWait.missed()
        }
        if askForKicks() { return io.submit(waiting: false) }
        io.submit(waiting: true)
        diskWait.slept(io.now() - begun, completions: io.completionCount)
    }
}
