import Core
import NBDProtocol
import PointInTime
import ScratchFiles
import SystemLayer
import Tables

/// Clusters that nothing is kept for any more, as soon as the home ring comes to it.
struct ReleaseStep {
    let export: BackupExport
    let clusters: Range<Int>
    /// Who waits for it.
    let ring: Int
    let request: RequestIndex
}

/// Clusters that backup clients release: TRIM on an export that was begun so.
///
/// The ledger has one writer, so the connection's ring asks the disk's home ring, a bounded step at
/// a time; the request stays open meanwhile, and with it the connection.
extension RingLoop where IO: ~Copyable {
    mutating func startRelease(_ request: RequestIndex) { continueRelease(request) }

    /// Asks for the next step, or answers the request.
    ///
    /// `issued` counts clusters.
    mutating func continueRelease(_ request: RequestIndex) {
        let slot = requests[request].connection
        guard case .backup(let export) = connections[slot].transmission.target else {
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
        guard connections[slot].phase != .closing, requests[request].failure == nil,
            next < clusters.upperBound
        else { return finish(request) }
        let step = next..<min(next + Limits.releasedClustersPerTurn, clusters.upperBound)
        requests[request].issued += UInt64(step.count)
        requests[request].piecesInFlight += 1
        shared.mailboxes[export.homeRing].post(
            .releaseClusters(export, step, ring: index, request: request))
    }

    /// On the home ring, one step a turn: guests come between, however many clients let go.
    mutating func takeReleaseStep() {
        guard let step = releaseSteps.popFirst() else { return }
        if let (slot, job) = find(step.export) {
            disks[slot].changes.releaseClusters(step.clusters, of: job, now: now)
            afterCopy(slot)
        }
        shared.mailboxes[step.ring].post(.clustersReleased(request: step.request))
    }

    mutating func clustersReleased(_ request: RequestIndex) {
        requests[request].piecesInFlight -= 1
        continueRelease(request)
    }
}
