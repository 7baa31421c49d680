import NBDProtocol
import ServerInterface
import Tables

/// What machines ask of disks, counted on their home rings.
extension RingLoop where IO: ~Copyable {
    /// Counts a request of a machine's.
    mutating func count(_ request: ValidRequest, of slot: ConnectionIndex) {
        guard let disk = connections[slot].transmission.disk else { return }
        disks[disk].figures.count(request.command, request.length)
    }

    /// Shows the figures to others: at each tick, not per request.
    mutating func publishFigures(_ disk: DiskIndex) {
        disks[disk].export.figures.publish(disks[disk].figures)
    }
}
