import NBDProtocol
import Tracking

/// The extents of one reply; room is taken when a connection first asks for block status and then
/// kept.
struct ExtentRoom {
    private var list = ExtentList(limit: Limits.extentsPerReply)

    var isFull: Bool { list.isFull }

    /// Bytes that the extents cover.
    var coveredBytes: UInt64 { list.coveredBytes }

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

    // Long extents are split to 32 bits as they are gathered. Where lengths have 64, neighbours
    // with equal flags are one again.

    /// How many extents the reply has.
    func count(isLong: Bool) -> Int {
        guard isLong else { return list.extents.count }
        var count = 0
        var next = 0
        while next < list.extents.count {
            _ = takeLong(&next)
            count += 1
        }
        return count
    }

    /// Whether the first extent is known whole.
    func hasFirst(isLong: Bool) -> Bool {
        guard list.extents.count > 1, let last = list.extents.last else { return false }
        return !isLong || last.flags != list.extents[0].flags
    }

    /// Writes `count` extents as they go over the wire, from the kept one at `next` on, which moves
    /// behind them; the memory has room for all of them.
    func encode(
        _ count: Int, from next: inout Int, by replies: ReplyEncoder,
        into memory: inout MutableRawSpan
    ) {
        var position = 0
        if replies.hasLongExtents {
            for _ in 0..<count {
                let extent = takeLong(&next)
                position += replies.extent(
                    length: extent.length, flags: extent.flags, into: &memory, at: position)
            }
            return
        }
        let extents = list.extents.span
        for index in next..<(next + count) {
            position += replies.extent(
                length: UInt64(extents[index].length), flags: extents[index].flags, into: &memory,
                at: position)
        }
        next += count
    }

    private func takeLong(_ next: inout Int) -> (length: UInt64, flags: UInt32) {
        let extents = list.extents.span
        let flags = extents[next].flags
        var length: UInt64 = 0
        repeat {
            length += UInt64(extents[next].length)
            next += 1
        } while next < extents.count && extents[next].flags == flags
        return (length, flags)
    }
}
