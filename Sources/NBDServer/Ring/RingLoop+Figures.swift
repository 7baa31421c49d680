import NBDProtocol
import ServerInterface
import Tables

/// What machines ask of disks, counted on their home rings.
extension RingLoop where IO: ~Copyable {
    /// Counts a request of a machine's.
    mutating func count(_ request: ValidRequest, of slot: ConnectionIndex) {
        guard let disk = connections[slot].transmission.disk else { return }
        disks[disk].figures.count(request.command, request.length)
        switch request.command {
        case .write, .trim, .writeZeroes:
            disks[disk].export.overwritten.note(
                offset: request.offset, length: request.length, now: now)
        case .read, .flush, .cache, .blockStatus, .disconnect: break
        }
    }

    /// Counts how long a change has waited that came upon a copy; never inside the functions that
    /// every write goes through.
    @inline(never)
    mutating func noteCopyWait(_ piece: PieceIndex) {
        let since = pieces[piece].copyWaitSince
        pieces[piece].copyWaitSince = 0
        disks[pieces[piece].homeDisk].figures.copyWaits.note(nanoseconds: now - min(now, since))
    }

    /// Shows the figures to others: at each tick, not per request.
    mutating func publishFigures(_ disk: DiskIndex) {
        disks[disk].export.figures.publish(disks[disk].figures)
    }
}
