import CLibNBD

/// One connection to an NBD server on a unix socket, used by one thread at a time.
// SAFETY (unchecked Sendable): the handle is set once, and a copy gives each of its threads a peer
// of its own; libnbd locks a handle for each call besides.
@safe final class NBDPeer: @unchecked Sendable {
    /// An answer to a question for block status.
    struct Extent {
        var offset: UInt64
        var count: UInt64
        var flags: UInt32
    }

    /// Never nil after `init`, closed in `deinit`, and used by one thread at a time.
    private let handle: OpaquePointer
    private let what: String

    /// Connects and opens an export; `what` names the other side in errors.
    init(
        socket: String, export: String = "", contexts: [String] = [], what: String
    ) throws(PushFailure) {
        self.what = what
        // SAFETY: a handle belongs to this object alone until `deinit`; strings are copied by the
        // callee.
        guard let created = unsafe nbd_create() else { throw Self.failure(what) }
        unsafe handle = unsafe created
        // Memory of a read that fails is looked at by nobody.
        try check(unsafe nbd_set_pread_initialize(handle, false))
        for context in contexts { try check(unsafe nbd_add_meta_context(handle, context)) }
        try check(unsafe nbd_set_export_name(handle, export))
        try check(unsafe nbd_connect_unix(handle, socket))
        for context in contexts {
            guard unsafe nbd_can_meta_context(handle, context) == 1 else {
                throw PushFailure("\(what): it does not offer '\(context)'")
            }
        }
    }

    deinit {
        // SAFETY: the last use of the handle.
        unsafe nbd_close(handle)
    }

    /// Says goodbye; the other side has done everything then.
    func disconnect() throws(PushFailure) {
        // SAFETY: the handle is open.
        try check(unsafe nbd_shutdown(handle, 0))
    }

    var sizeBytes: UInt64 {
        // SAFETY: the handle is open, and the call reads a negotiated fact.
        UInt64(clamping: unsafe nbd_get_size(handle))
    }

    // SAFETY (all of these): the memory outlives the call, which returns when the reply is in; the
    // count is the memory's own.

    func read(_ memory: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(PushFailure) {
        try check(unsafe nbd_pread(handle, memory.baseAddress, memory.count, offset, 0))
    }

    func write(_ memory: UnsafeRawBufferPointer, at offset: UInt64) throws(PushFailure) {
        try check(unsafe nbd_pwrite(handle, memory.baseAddress, memory.count, offset, 0))
    }

    func zero(at offset: UInt64, count: Int) throws(PushFailure) {
        try check(unsafe nbd_zero(handle, UInt64(count), offset, 0))
    }

    func flush() throws(PushFailure) {
        try check(unsafe nbd_flush(handle, 0))
    }

    /// The extents of a range, by context; the answers cover it in each.
    ///
    /// `body` is called after each answer, of which a large range may take many.
    func extents(
        at offset: UInt64, count: Int, contexts: [String], _ body: () -> Void
    ) throws(PushFailure) -> [String: [Extent]] {
        var found: [String: [Extent]] = [:]
        let end = offset + UInt64(count)
        var position = offset
        while position < end {
            let answer = try ask(at: position, count: Int(end - position))
            body()
            // The shortest answer is what is known in all of them.
            let covered = contexts.map { answer[$0]?.last.map { $0.offset + $0.count } ?? position }
            guard let next = covered.min().map({ min($0, end) }), next > position else {
                throw PushFailure("\(what): its answer for block status says nothing")
            }
            for context in contexts {
                for var extent in answer[context] ?? [] where extent.offset < next {
                    extent.count = min(extent.count, next - extent.offset)
                    found[context, default: []].append(extent)
                }
            }
            position = next
        }
        return found
    }

    private func ask(at offset: UInt64, count: Int) throws(PushFailure) -> [String: [Extent]] {
        let found = Collector()
        // SAFETY: `found` lives past the call, and the call keeps no callback when it returns.
        let result = withExtendedLifetime(found) {
            let callback = unsafe nbd_extent_callback(
                callback: onExtents, user_data: Unmanaged.passUnretained(found).toOpaque(),
                free: nil)
            return unsafe nbd_block_status(handle, UInt64(count), offset, callback, 0)
        }
        try check(result)
        return found.extents
    }

    private func check(_ result: Int32) throws(PushFailure) {
        if result < 0 { throw Self.failure(what) }
    }

    private static func failure(_ what: String) -> PushFailure {
        // SAFETY: the text belongs to the library and is copied before any further call.
        let text = unsafe nbd_get_error().map { unsafe String(cString: $0) } ?? "unknown error"
        return PushFailure("\(what): \(text)")
    }
}

/// Collects what a callback hands out while one call runs.
private final class Collector {
    var extents: [String: [NBDPeer.Extent]] = [:]
}

private func onExtents(
    cookie: UnsafeMutableRawPointer?, context: UnsafePointer<CChar>?, offset: UInt64,
    entries: UnsafeMutablePointer<UInt32>?, count: Int, error: UnsafeMutablePointer<CInt>?
) -> CInt {
    // SAFETY: the cookie is a collector that its caller keeps alive until the call has returned;
    // the library guarantees `count` entries, in pairs, valid during this call.
    guard let cookie = unsafe cookie, let context = unsafe context, let entries = unsafe entries
    else { return -1 }
    let found = unsafe Unmanaged<Collector>.fromOpaque(cookie).takeUnretainedValue()
    let name = unsafe String(cString: context)
    var position = offset
    for index in stride(from: 0, to: count - 1, by: 2) {
        let extent = unsafe NBDPeer.Extent(
            offset: position, count: UInt64(entries[index]), flags: entries[index + 1])
        found.extents[name, default: []].append(extent)
        position += extent.count
    }
    return 0
}
