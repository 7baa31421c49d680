import Core
import IORing
import PointInTime
import Tables

/// Storage that hangs keeps the kernel's workers of a ring, which are few; each that it keeps is
/// replaced, so that other disks and jobs go on.
extension RingLoop where IO: ~Copyable {
    /// Counts the operations that hang, and lets the kernel have as many workers more.
    mutating func replaceHungWorkers() {
        let hung = hungOperations()
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

    private static var workerStep: Int { 16 }

    private mutating func hungOperations() -> Int {
        guard now > Limits.hungNanoseconds else { return 0 }
        let limit = now - Limits.hungNanoseconds
        var hung = 0
        if pieces.count > 0 {
            for piece in pieces.indices where pieces.contains(piece) {
                let since = pieces[piece].handedOverAt
                if since > 0, since < limit { hung += 1 }
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
