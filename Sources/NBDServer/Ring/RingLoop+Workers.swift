import Core
import Disk
import IORing
import NBDProtocol
import PointInTime
import Tables
import TrackingFiles

/// Storage that hangs keeps the kernel's workers of a ring, which are few; each that it keeps is
/// replaced, so that other disks and jobs go on.
extension RingLoop where IO: ~Copyable {
    /// Counts the operations that hang, and lets the kernel have as many workers more.
    mutating func replaceHungWorkers() {
        let hung = hungOperations()
        noteStalls()
        noteHungSyncs(mayBe: hung > 0)
        // A clock that was late sees everything late once.
        guard hung > 0 || workers > ownWorkers else { return }
        if ownWorkers == 0 {
            ownWorkers = io.fileWorkers() ?? 0
            workers = ownWorkers
        }
        guard ownWorkers > 0 else { return }
        // In steps, so that the kernel is told seldom.
        let wanted =
            ownWorkers + UInt32(hung + Self.workerStep - 1) / UInt32(Self.workerStep)
            * UInt32(Self.workerStep)
        guard wanted > workers || hung == 0 else { return }
        workers = hung == 0 ? ownWorkers : wanted
        io.setFileWorkers(workers, tag: Operation.ignored.tag)
    }

    /// Keeps for the next process that a sync takes long.
    ///
    /// What the kernel tells of a sync it tells once, and when this process is killed, to nobody.
    private mutating func noteHungSyncs(mayBe: Bool) {
        let limit = now > Limits.hungSyncNanoseconds ? now - Limits.hungSyncNanoseconds : 0
        if mayBe {
            for piece in pieces.indices where pieces.contains(piece) {
                let since = pieces[piece].handedOverAt
                guard since > 0, since < limit, tellsLosses(pieces[piece]) else { continue }
                disks[pieces[piece].homeDisk].hasHungSync = true
            }
        }
        for disk in disks.indices where disks.contains(disk) {
            let source = disks[disk].export.source
            let hangs = disks[disk].hasHungSync || source.ownSyncIsUnderWay(since: limit)
            disks[disk].hasHungSync = false
            guard hangs != (source.doubt == .hungSync), source.doubt != .lostWrites else {
                continue
            }
            // One that has ended badly says more than that it hung.
            if !hangs { noticeLoss(disk) }
            source.doubt = hangs ? .hungSync : nil
            disks[disk].tracking?.doubt.say(syncHangs: hangs)
        }
    }

    /// Whether an operation's result may be the only word of writes that are lost.
    private func tellsLosses(_ piece: Piece) -> Bool {
        switch piece.kind {
        case .sync: true
        case .write: requests[piece.request].valid.flags.contains(.fua)
        case .read, .zero, .discard, .prefetch, .guestRead, .status: false
        }
    }

    private static var workerStep: Int { 16 }

    /// A disk with a change that hangs, and keeps the file's lock perhaps, is asked nothing that the
    /// ring itself would wait for; nor is one whose bytes are asked for elsewhere, when anything hangs.
    private mutating func noteStalls() {
        for disk in disks.indices where disks.contains(disk) {
            let isStalled = disks[disk].hasStall
            disks[disk].hasStall = false
            guard disks[disk].isStalled != isStalled else { continue }
            disks[disk].isStalled = isStalled
            disks[disk].export.source.isStalled = isStalled
        }
    }

    private mutating func hungOperations() -> Int {
        guard now > Limits.hungNanoseconds else { return 0 }
        let limit = now - Limits.hungNanoseconds
        let stallLimit = now > Limits.stallNanoseconds ? now - Limits.stallNanoseconds : 0
        var hung = 0
        if pieces.count > 0 {
            for piece in pieces.indices where pieces.contains(piece) {
                let since = pieces[piece].handedOverAt
                guard since > 0, since < limit else { continue }
                if pieces[piece].keepsWorker { hung += 1 }
                guard since < stallLimit, let disk = pieces[piece].disk,
                    pieces[piece].kind.changesDisk || disks[disk].export.source.isFar
                else { continue }
                disks[disk].hasStall = true
            }
        }
        for disk in disks.indices where disks.contains(disk) {
            guard disks[disk].changes.copiesInFlight > 0 else { continue }
            for copy in disks[disk].copies where copy.handedOverAt > 0 && copy.handedOverAt < limit
            {
                hung += 1
            }
        }
        return hung
    }
}
