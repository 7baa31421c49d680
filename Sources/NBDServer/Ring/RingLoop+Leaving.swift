import Core
import Disk
import ServerInterface
import SystemLayer
import Tables

/// A ring leaves its disks to another server: connections go, then nothing is at work, then the
/// disks go as a kill would leave them.
extension RingLoop where IO: ~Copyable {
    /// Whether no disk has failed a flush that the kernel would not fail again.
    mutating func mayLeave() -> Bool {
        for slot in disks.indices where disks.contains(slot) && disks[slot].syncErrno != nil {
            return false
        }
        return true
    }

    // MARK: Connections go

    mutating func depart(_ ticket: Ticket) {
        isDeparting = true
        departTicket = ticket
        for slot in connections.indices where connections.contains(slot) { sendAway(slot) }
        reportDeparted()
    }

    /// Answers what a connection has asked, and asks no more of it; one that negotiates has asked
    /// nothing yet.
    private mutating func sendAway(_ slot: ConnectionIndex) {
        switch connections[slot].phase {
        case .handshake, .securing: close(slot)
        case .transmission, .sharing, .draining:
            drain(slot)
            // A client that does not take its replies holds nobody up.
            let end = now + Limits.departureNanoseconds
            connections[slot].enter(.draining, until: min(connections[slot].phaseEnd ?? end, end))
        case .closing: break
        }
    }

    mutating func reportDeparted() {
        guard isDeparting, connections.count == 0 else { return }
        departTicket?.answer()
        departTicket = nil
    }

    // MARK: Nothing is at work

    /// False while something is at work.
    mutating func hush() -> Bool {
        isHushed = isDeparting && isQuiet()
        return isHushed
    }

    private mutating func isQuiet() -> Bool {
        guard connections.count == 0, pieces.count == 0, requests.count == 0,
            releaseSteps.isEmpty, orphans.isEmpty,
            scratchWrites.indices(where: { _ in true }).isEmpty
        else { return false }
        for slot in disks.indices where disks.contains(slot) {
            guard disks[slot].changes.isIdle, disks[slot].changes.copiesInFlight == 0,
                !disks[slot].changes.isRecordBusy, disks[slot].syncErrno == nil,
                disks[slot].detachTickets.allSatisfy({ $0 == nil }),
                // The kernel has told it, and tells the next process nothing.
                !disks[slot].export.source.hasLostWrites
            else { return false }
        }
        return true
    }

    mutating func stay() {
        isDeparting = false
        departTicket = nil
        isHushed = false
    }

    // MARK: Disks go

    mutating func leave() {
        precondition(isHushed, "a disk is left when nothing is at work on it")
        for slot in disks.indices where disks.contains(slot) { takeOut(slot) }
        diskSlots = [:]
        closers = []
    }
}
