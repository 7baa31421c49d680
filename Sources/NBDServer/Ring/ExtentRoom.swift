import Bitmap

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

    subscript(_ index: Int) -> Extent { list.extents[index] }
}
