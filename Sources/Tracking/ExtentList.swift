/// One extent of a block status reply: a length and the flags that hold for all of it.
package struct Extent: Sendable, Equatable {
    /// Bytes; never zero, at most `ExtentList.lengthMax`.
    package var length: UInt32
    package var flags: UInt32

    package init(length: UInt32, flags: UInt32) {
        self.length = length
        self.flags = flags
    }
}

/// Builds the extents of one reply: neighbours with equal flags merge, long ones are split to fit
/// 32 bits.
///
/// The extents cover the request from its start without gap or overlap. Room is reserved once, so
/// that appending allocates nothing.
package struct ExtentList: Sendable {
    /// Longest extent: the largest multiple of 64 KiB that 32 bits hold, so that no split falls
    /// inside a block, in bytes.
    package static let lengthMax: UInt32 = 0xFFFF_0000

    package private(set) var extents: [Extent] = []
    /// Extents that may be kept; a longer answer is cut off there.
    package let limit: Int
    /// Bytes covered so far.
    package private(set) var coveredBytes: UInt64 = 0

    /// An empty list that holds at most `limit` extents.
    package init(limit: Int) {
        precondition(limit > 0)
        self.limit = limit
    }

    /// Whether a run with other flags would find no room.
    package var isFull: Bool { extents.count == limit }

    /// Forgets every extent but keeps the room.
    package mutating func removeAll() {
        extents.removeAll(keepingCapacity: true)
        coveredBytes = 0
    }

    /// Appends a run; returns false when the list was full before all of it fitted.
    package mutating func append(length: UInt64, flags: UInt32) -> Bool {
        var left = length
        if let last = extents.last, last.flags == flags, last.length < Self.lengthMax {
            let step = UInt32(min(UInt64(Self.lengthMax - last.length), left))
            extents[extents.count - 1].length += step
            coveredBytes += UInt64(step)
            left -= UInt64(step)
        }
        while left > 0 {
            if extents.count == limit { return false }
            let step = UInt32(min(UInt64(Self.lengthMax), left))
            extents.append(Extent(length: step, flags: flags))
            coveredBytes += UInt64(step)
            left -= UInt64(step)
        }
        return true
    }
}
