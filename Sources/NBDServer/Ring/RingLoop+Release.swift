import IORing
import NBDProtocol
import Scratch

/// Clusters that backup clients let go of: TRIM on an export that was begun so.
///
/// The ledger has one writer, so the connection's ring asks the disk's home ring, a bounded step at a
/// time; the request stays open meanwhile, and with it the connection.
extension RingLoop {
    mutating func startRelease(_ request: Int) { continueRelease(request) }

    /// Asks for the next step, or answers the request.
    ///
    /// `issued` counts clusters.
    mutating func continueRelease(_ request: Int) {
        let slot = requests[request].connection
        guard case .backup(let export) = connections[slot].target else {
            preconditionFailure("only backup exports release clusters")
        }
        if export.ledger.view.isClosed {
            fail(
                request, .ioError, "the backup job is broken or has ended",
                at: requests[request].valid.offset)
        }
        let clusters = export.geometry.clusters(
            within: requests[request].valid.offset, length: requests[request].valid.length)
        let next = clusters.lowerBound + Int(requests[request].issued)
        guard connections[slot].phase != .closing, requests[request].error == nil,
            next < clusters.upperBound
        else { return finish(request) }
        let step = next..<min(next + Limits.releasedClustersPerTurn, clusters.upperBound)
        requests[request].issued += UInt64(step.count)
        requests[request].piecesInFlight += 1
        shared.mailboxes[export.homeRing].post(
            .releaseClusters(export, step, ring: index, request: request))
    }

    /// On the home ring: nothing is kept for these clusters any more.
    mutating func releaseClusters(
        _ export: BackupExport, _ clusters: Range<Int>, ring: Int, request: Int
    ) {
        if let (slot, job) = find(export) {
            disks[slot].gate.releaseClusters(job: job, clusters, now: now)
            afterCopy(slot)
        }
        shared.mailboxes[ring].post(.clustersReleased(request: request))
    }

    mutating func clustersReleased(_ request: Int) {
        requests[request].piecesInFlight -= 1
        continueRelease(request)
    }
}
