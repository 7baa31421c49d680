import Core
import ServerInterface
import Synchronization
import System
import Tracking
import TrackingFiles

/// Everything that is to happen at one instant, on all its disks.
struct Instant {
    /// Old content is preserved for these from the instant on.
    var exports: [BackupExport] = []
    /// Changes after the instant are recorded in a new layer.
    var swaps: [RecordingSwap] = []
    /// The bits as they are at the instant are wanted.
    var snapshots: [RecordingSnapshot] = []
    /// What the sealed layers since a checkpoint say, by the checkpoints that a job's bitmaps have as
    /// bases; read before the instant.
    var sealedBits: [DiskID: [String: DirtyBitmap]] = [:]

    /// Disks concerned, each once, with the ring where they live, in the order of their numbers.
    var disks: [(id: DiskID, homeRing: Int)] {
        var homes: [DiskID: Int] = [:]
        for export in exports { homes[export.disk] = export.homeRing }
        for swap in swaps { homes[swap.disk] = swap.homeRing }
        for snapshot in snapshots { homes[snapshot.disk] = snapshot.homeRing }
        return homes.sorted { $0.key.number < $1.key.number }.map {
            (id: $0.key, homeRing: $0.value)
        }
    }

    /// How many things are to be carried out.
    var partCount: Int { exports.count + swaps.count + snapshots.count }

    /// Asks the part's ring to carry it out: jobs, then layers, then snapshots.
    func carryOut(_ part: Int, _ mailboxes: [Mailbox<RingMessage>], _ ticket: Ticket) {
        if part < exports.count {
            let export = exports[part]
            return mailboxes[export.homeRing].post(.attachJob(export, ticket))
        }
        if part < exports.count + swaps.count {
            let swap = swaps[part - exports.count]
            return mailboxes[swap.homeRing].post(.swapRecording(swap.disk, swap.next, ticket))
        }
        let snapshot = snapshots[part - exports.count - swaps.count]
        mailboxes[snapshot.homeRing].post(
            .snapshotRecording(snapshot.disk, snapshot.box, ticket))
    }
}

/// One disk's part in a new checkpoint.
struct RecordingSwap {
    let disk: DiskID
    let homeRing: Int
    let old: RecordingLayer
    let next: RecordingLayer
}

/// The bits of a disk that takes no part in a new checkpoint.
struct RecordingSnapshot {
    let disk: DiskID
    let homeRing: Int
    let box = BitmapBox()
}

extension NBDServer {
    /// Holds the changes of all disks, does what the instant asks while none is in flight, lets go.
    ///
    /// `InstantFixing` decides; here rings are asked and answer. Returns how long changes were held, in
    /// nanoseconds. On a fault nothing has happened.
    func fix(_ instant: Instant) -> Result<UInt64, ServerFault> {
        let start = MonotonicClock.now()
        let disks = instant.disks
        let replies = Replies()
        var fixing = InstantFixing(diskCount: disks.count, partCount: instant.partCount)
        var deadline = start + UInt64(Limits.holdMilliseconds) * 1_000_000
        while true {
            while let action = fixing.nextAction() { perform(action, of: instant, disks, replies) }
            if let outcome = fixing.outcome {
                return result(of: outcome, MonotonicClock.now() - start)
            }
            guard let reply = replies.next(until: deadline) else {
                fixing.timeIsOver()
                continue
            }
            let wasHolding = fixing.isHolding
            if reply.number < disks.count {
                fixing.isQuiet(disk: reply.number)
            } else {
                fixing.carriedOut(part: reply.number - disks.count, succeeded: reply.succeeded)
            }
            if wasHolding != fixing.isHolding {
                deadline = MonotonicClock.now() + UInt64(Limits.ringMilliseconds) * 1_000_000
            }
        }
    }

    private func perform(
        _ action: InstantFixing.Action, of instant: Instant,
        _ disks: [(id: DiskID, homeRing: Int)], _ replies: Replies
    ) {
        switch action {
        case .hold(let disk):
            let (id, ring) = disks[disk]
            shared.mailboxes[ring].post(.hold(id, replies.ticket(disk)))
        case .carryOut(let part):
            instant.carryOut(part, shared.mailboxes, replies.ticket(disks.count + part))
        case .release(let disk):
            let (id, ring) = disks[disk]
            shared.mailboxes[ring].post(.release(id))
        case .takeBack: undo(instant)
        }
    }

    private func result(
        of outcome: InstantFixing.Outcome, _ hold: UInt64
    ) -> Result<UInt64, ServerFault> {
        switch outcome {
        case .fixed: .success(hold)
        case .notQuiet: .failure(.holdTimedOut(milliseconds: UInt64(Limits.holdMilliseconds)))
        case .stuck: .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
        case .refused:
            .failure(.limitReached(what: "jobs at once on a disk", limit: Limits.jobsPerDisk))
        }
    }

    /// Takes an instant back: nothing is preserved for it, and changes are recorded as before.
    func undo(_ instant: Instant) {
        detachAll(instant.exports)
        for swap in instant.swaps { undo(swap) }
    }

    private func undo(_ swap: RecordingSwap) {
        let undone = Latch(count: 1)
        shared.mailboxes[swap.homeRing].post(.unswapRecording(swap.disk, swap.old, undone))
        // A layer that a ring may still record in stays: the next start adds it to what is recorded.
        guard undone.wait(milliseconds: Limits.ringMilliseconds) else { return }
        if case .success(let (_, store)) = store(swap.disk) { store.abandon(swap.next) }
    }
}
