import CLibNBD

/// One run of a block status reply.
package struct NBDExtent: Equatable, Sendable {
    package var offset: Int
    package var count: Int
    package var flags: UInt32

    package init(offset: Int, count: Int, flags: UInt32) {
        self.offset = offset
        self.count = count
        self.flags = flags
    }

    package var end: Int { offset + count }
    package var isHole: Bool { flags & 1 != 0 }
    package var readsAsZero: Bool { flags & 2 != 0 }
    package var isDirty: Bool { flags & 1 != 0 }
}

/// Collects what a callback hands out while one call runs.
private final class Collector {
    var extents: [String: [NBDExtent]] = [:]
    var names: [String] = []
}

/// Turns a callback's cookie back into its collector.
private func collector(_ cookie: UnsafeMutableRawPointer?) -> Collector? {
    // SAFETY: every call below passes an unretained pointer to a collector that it keeps alive
    // until the call has returned.
    guard let cookie = unsafe cookie else { return nil }
    return unsafe Unmanaged<Collector>.fromOpaque(cookie).takeUnretainedValue()
}

private func onExtents(
    cookie: UnsafeMutableRawPointer?, context: UnsafePointer<CChar>?, offset: UInt64,
    entries: UnsafeMutablePointer<UInt32>?, count: Int, error: UnsafeMutablePointer<CInt>?
) -> CInt {
    // SAFETY: the library guarantees `count` entries, in pairs, valid during this call.
    guard let found = unsafe collector(cookie), let context = unsafe context,
        let entries = unsafe entries
    else { return -1 }
    let name = unsafe String(cString: context)
    var position = Int(offset)
    for index in stride(from: 0, to: count - 1, by: 2) {
        let extent = unsafe NBDExtent(
            offset: position, count: Int(entries[index]), flags: entries[index + 1])
        found.extents[name, default: []].append(extent)
        position = extent.end
    }
    return 0
}

private func onName(
    cookie: UnsafeMutableRawPointer?, name: UnsafePointer<CChar>?,
    description: UnsafePointer<CChar>?
) -> CInt {
    // SAFETY: the name is a C string that is valid during this call.
    guard let found = unsafe collector(cookie), let name = unsafe name else { return -1 }
    found.names.append(unsafe String(cString: name))
    return 0
}

extension NBDClient {
    /// The extents of one reply, by meta context.
    package func blockStatus(_ offset: Int, _ count: Int, _ flags: NBDFlags = [])
        throws(NBDFailure) -> [String: [NBDExtent]]
    {
        let found = Collector()
        // SAFETY: `found` lives past the call, and the call keeps no callback when it returns.
        let result = withExtendedLifetime(found) {
            let callback = unsafe nbd_extent_callback(
                callback: onExtents, user_data: Unmanaged.passUnretained(found).toOpaque(),
                free: nil)
            return unsafe nbd_block_status(
                handle, UInt64(count), UInt64(offset), callback, flags.rawValue)
        }
        try check(result)
        return found.extents
    }

    /// The extents of the whole export in one context, neighbours of equal flags merged.
    ///
    /// Asks as often as needed, and throws when the replies leave a gap or do not advance.
    package func map(_ context: String) throws -> [NBDExtent] {
        var merged: [NBDExtent] = []
        var position = 0
        while position < sizeBytes {
            let request = min(sizeBytes - position, 1 << 30)
            let extents = try blockStatus(position, request)[context] ?? []
            guard let first = extents.first, first.offset == position, first.count > 0 else {
                throw TestFailure("block status at \(position) does not advance: \(extents)")
            }
            for extent in extents where extent.offset < sizeBytes {
                if let last = merged.last, last.flags == extent.flags {
                    merged[merged.count - 1].count += extent.count
                } else {
                    merged.append(extent)
                }
                position = extent.end
            }
        }
        guard position == sizeBytes else {
            throw TestFailure("block status reaches \(position), past the size \(sizeBytes)")
        }
        return merged
    }

    /// The names that the server lists.
    ///
    /// Needs ``NBDClientOptions/optionMode``.
    package func listExports() throws(NBDFailure) -> [String] {
        let found = Collector()
        // SAFETY: as in `blockStatus`.
        let result = withExtendedLifetime(found) {
            let callback = unsafe nbd_list_callback(
                callback: onName, user_data: Unmanaged.passUnretained(found).toOpaque(), free: nil)
            return unsafe nbd_opt_list(handle, callback)
        }
        try check(result)
        return found.names
    }
}
