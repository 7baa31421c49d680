import Core
import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// Everything that is to happen at one instant, on all its disks.
struct Instant: Sendable {
    /// Old content is preserved for these from the instant on.
    var exports: [BackupExport] = []
    /// Changes after the instant are recorded in a new layer.
    var swaps: [RecordingSwap] = []
    /// The bits as they are at the instant are wanted.
    var snapshots: [RecordingSnapshot] = []
    /// What the sealed layers since a checkpoint say, by the checkpoints that a job's bitmaps have
    /// as bases; read before the instant.
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
struct RecordingSwap: Sendable {
    let disk: DiskID
    let homeRing: Int
    let old: RecordingLayer
    let next: RecordingLayer
}

/// The bits of a disk that takes no part in a new checkpoint.
struct RecordingSnapshot: Sendable {
    let disk: DiskID
    let homeRing: Int
    let box = BitmapBox()
}
