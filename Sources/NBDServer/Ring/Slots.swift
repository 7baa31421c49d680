import Core
import PointInTime
import SystemLayer
import Tables
import Tracking

/// A ring's tables, and what names a slot of each.
typealias ConnectionIndex = SlotTable<Connection>.Index
typealias DiskIndex = SlotTable<HomeDisk>.Index
typealias RequestIndex = SlotTable<Request>.Index
typealias VhostIndex = SlotTable<VhostSession>.Index
typealias PieceIndex = SlotTable<Piece>.Index
typealias CopyBufferIndex = GrowingTable<CopyBuffer>.Index
typealias ScratchWriteIndex = GrowingTable<PendingScratchWrite>.Index

extension PieceIndex {
    /// The piece of a change that copy-before-write or the write-intent log lets go.
    init(_ change: ChangeID) { self.init(change.number) }

    /// What copy-before-write and the write-intent log call a piece that changes its disk.
    var change: ChangeID { ChangeID(number) }
}

extension RequestIndex {
    /// The request that a disk lets zero or discard.
    init(_ zeroing: ZeroingID) { self.init(zeroing.number) }

    /// What a disk calls a request that zeroes or discards.
    var zeroing: ZeroingID { ZeroingID(number) }
}

extension [BackupExport?] {
    subscript(_ job: JobIndex) -> BackupExport? {
        get { self[job.number] }
        set { self[job.number] = newValue }
    }
}

extension [Ticket?] {
    subscript(_ job: JobIndex) -> Ticket? {
        get { self[job.number] }
        set { self[job.number] = newValue }
    }
}

extension [CopyInFlight] {
    subscript(_ copy: CopyIndex) -> CopyInFlight {
        _read { yield self[copy.number] }
        _modify { yield &self[copy.number] }
    }
}
