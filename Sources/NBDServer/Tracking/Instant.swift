import Bitmap
import IORing
import Synchronization

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

    /// Disks concerned, each once, with the ring where they live.
    var disks: [DiskID: Int] {
        var homes: [DiskID: Int] = [:]
        for export in exports { homes[export.disk] = export.homeRing }
        for swap in swaps { homes[swap.disk] = swap.homeRing }
        for snapshot in snapshots { homes[snapshot.disk] = snapshot.homeRing }
        return homes
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
    /// The instant lies between the last disk's report and the first release, so all disks share
    /// it. Returns how long changes were held, in nanoseconds. On a fault nothing has happened.
    func fix(_ instant: Instant) -> Result<UInt64, ServerFault> {
        let start = MonotonicClock.now()
        let disks = instant.disks
        let held = Latch(count: disks.count)
        for (disk, ring) in disks { shared.mailboxes[ring].post(.hold(disk, held)) }
        guard held.wait(milliseconds: Limits.holdMilliseconds) else {
            release(disks)
            return .failure(.holdTimedOut(milliseconds: UInt64(Limits.holdMilliseconds)))
        }
        let done = Latch(
            count: instant.exports.count + instant.swaps.count + instant.snapshots.count)
        let outcomes = instant.exports.map { _ in Outcome() }
        for (export, outcome) in zip(instant.exports, outcomes) {
            shared.mailboxes[export.homeRing].post(.attachJob(export, outcome, done))
        }
        for swap in instant.swaps {
            shared.mailboxes[swap.homeRing].post(.swapRecording(swap.disk, swap.next, done))
        }
        for snapshot in instant.snapshots {
            shared.mailboxes[snapshot.homeRing].post(
                .snapshotRecording(snapshot.disk, snapshot.box, done))
        }
        let isDone = done.wait(milliseconds: Limits.ringMilliseconds)
        release(disks)
        let hold = MonotonicClock.now() - start
        guard isDone else {
            // Rings look at messages in their order: what comes late is undone at once.
            undo(instant)
            return .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
        }
        if outcomes.allSatisfy({ $0.succeeded.load(ordering: .acquiring) }) {
            return .success(hold)
        }
        undo(instant)
        return .failure(
            .limitReached(what: "jobs at once on a disk", limit: Limits.jobsPerDisk))
    }

    private func release(_ disks: [DiskID: Int]) {
        for (disk, ring) in disks { shared.mailboxes[ring].post(.release(disk)) }
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
