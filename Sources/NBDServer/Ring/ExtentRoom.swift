import Bitmap
import NBDProtocol

/// The extents of one reply; room is taken when a connection first asks for block status and then
/// kept.
struct ExtentRoom {
    private var list = ExtentList(limit: Limits.extentsPerReply)

    var isFull: Bool { list.isFull }
    var count: Int { list.extents.count }

    mutating func removeAll() { list.removeAll() }

    /// Adds a run; what no longer fits is left off, as the protocol allows.
    mutating func append(length: UInt64, flags: UInt32) {
        _ = list.append(length: length, flags: flags)
    }

    /// Adds runs of a dirty bitmap; returns the position up to which it is told now.
    mutating func append(
        runsOf bitmap: DirtyBitmap, granularityShift: UInt64, from position: UInt64, to end: UInt64,
        dirtyFlags: UInt32, runs: Int
    ) -> UInt64 {
        list.append(
            runsOf: bitmap, granularityShift: granularityShift, from: position, to: end,
            dirtyFlags: dirtyFlags, runs: runs)
    }

    /// Writes extents as they go over the wire; the memory has room for all of them.
    func encode(_ range: Range<Int>, into memory: inout MutableRawSpan, at offset: Int) {
        let extents = list.extents.span
        var position = offset
        for index in range {
            position += ReplyEncoder.extent(
                length: extents[index].length, flags: extents[index].flags, into: &memory,
                at: position)
        }
    }
}
