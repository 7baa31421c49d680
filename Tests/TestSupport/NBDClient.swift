import CLibNBD

/// An error that the server sent or that the client library found.
package struct NBDFailure: Error, Equatable, CustomStringConvertible {
    /// The errno, or 0 if there is none.
    package let code: Int32
    package let message: String

    package var description: String { "\(message) (errno \(code))" }
}

/// Flags of one command.
package struct NBDFlags: OptionSet, Sendable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let forceUnitAccess = NBDFlags(rawValue: 1)
    package static let noHole = NBDFlags(rawValue: 2)
    package static let dontFragment = NBDFlags(rawValue: 4)
    package static let requestOne = NBDFlags(rawValue: 8)
    package static let fastZero = NBDFlags(rawValue: 16)
}

/// How a client connects.
package struct NBDClientOptions: Sendable {
    /// Meta contexts to ask for.
    package var contexts: [String] = []
    package var structuredReplies = true
    /// False lets requests leave that the server has to refuse itself.
    package var strict = true
    /// Stops after the handshake's start, for ``NBDClient/listExports()``.
    package var optionMode = false

    package init() {}

    package static func contexts(_ names: String...) -> NBDClientOptions {
        var options = NBDClientOptions()
        options.contexts = names
        return options
    }

    package static var unchecked: NBDClientOptions {
        var options = NBDClientOptions()
        options.strict = false
        return options
    }
}

/// One connection of the independent client library.
///
/// This file and its extensions in `NBDClient+*.swift` are the only ones that touch the C API.
@safe package final class NBDClient {
    /// Never nil after `init`, closed in `deinit`, and handed to one thread at a time.
    let handle: OpaquePointer
    /// Memory that commands in flight read from or write to, by cookie.
    var buffers: [Int64: UnsafeMutableRawBufferPointer] = unsafe [:]

    /// Connects and negotiates an export.
    package init(_ uri: String, _ options: NBDClientOptions = NBDClientOptions()) throws(NBDFailure)
    {
        // SAFETY: a handle belongs to this object alone until `deinit`.
        guard let created = unsafe nbd_create() else { throw Self.lastFailure() }
        unsafe handle = unsafe created
        // SAFETY: the handle is open; strings are copied by the callee.
        for context in options.contexts {
            try check(unsafe nbd_add_meta_context(handle, context))
        }
        if !options.structuredReplies {
            try check(unsafe nbd_set_request_structured_replies(handle, false))
        }
        if !options.strict { try check(unsafe nbd_set_strict_mode(handle, 0)) }
        // URIs of tests name files with keys and certificates.
        try check(unsafe nbd_set_uri_allow_local_file(handle, true))
        if options.optionMode { try check(unsafe nbd_set_opt_mode(handle, true)) }
        try check(unsafe nbd_connect_uri(handle, uri))
    }

    deinit {
        // SAFETY: closing first ends every command, so no buffer is in use when it is freed.
        unsafe nbd_close(handle)
        unsafe buffers.values.forEach { unsafe $0.deallocate() }
    }

    /// Says goodbye, as a polite client does.
    package func disconnect() throws(NBDFailure) {
        // SAFETY: the handle is open.
        try check(unsafe nbd_shutdown(handle, 0))
    }

    /// The thread's last error.
    static func lastFailure() -> NBDFailure {
        // SAFETY: the text belongs to the library and is copied before any further call.
        let text = unsafe nbd_get_error().map { unsafe String(cString: $0) } ?? "unknown error"
        return NBDFailure(code: nbd_get_errno(), message: text)
    }

    @discardableResult
    func check(_ result: Int32) throws(NBDFailure) -> Int32 {
        if result < 0 { throw Self.lastFailure() }
        return result
    }
}

// What the export offers.
extension NBDClient {
    // SAFETY (all of these): the handle is open and the calls only read negotiated facts.
    package var sizeBytes: Int { Int(unsafe nbd_get_size(handle)) }
    package var isReadOnly: Bool { unsafe nbd_is_read_only(handle) == 1 }
    package var canFlush: Bool { unsafe nbd_can_flush(handle) == 1 }
    package var canForceUnitAccess: Bool { unsafe nbd_can_fua(handle) == 1 }
    package var canTrim: Bool { unsafe nbd_can_trim(handle) == 1 }
    package var canZero: Bool { unsafe nbd_can_zero(handle) == 1 }
    package var canFastZero: Bool { unsafe nbd_can_fast_zero(handle) == 1 }
    package var canCache: Bool { unsafe nbd_can_cache(handle) == 1 }
    package var canDontFragment: Bool { unsafe nbd_can_df(handle) == 1 }
    package var canMultiConnection: Bool { unsafe nbd_can_multi_conn(handle) == 1 }
    package var minimumBlockSize: Int { Int(unsafe nbd_get_block_size(handle, 0)) }
    package var preferredBlockSize: Int { Int(unsafe nbd_get_block_size(handle, 1)) }
    package var maximumBlockSize: Int { Int(unsafe nbd_get_block_size(handle, 2)) }

    package func hasContext(_ name: String) -> Bool {
        unsafe nbd_can_meta_context(handle, name) == 1
    }
}

// Commands that wait for their reply.
extension NBDClient {
    // SAFETY (all of these): buffers outlive the call, which returns only when the reply is in;
    // the length given is the buffer's own.

    package func read(_ offset: Int, _ count: Int, _ flags: NBDFlags = []) throws(NBDFailure)
        -> [UInt8]
    {
        var bytes = [UInt8](repeating: 0xdb, count: count)
        let result = unsafe bytes.withUnsafeMutableBytes { raw in
            unsafe nbd_pread(handle, raw.baseAddress, raw.count, UInt64(offset), flags.rawValue)
        }
        try check(result)
        return bytes
    }

    package func write(_ bytes: [UInt8], at offset: Int, _ flags: NBDFlags = [])
        throws(NBDFailure)
    {
        let result = unsafe bytes.withUnsafeBytes { raw in
            unsafe nbd_pwrite(handle, raw.baseAddress, raw.count, UInt64(offset), flags.rawValue)
        }
        try check(result)
    }

    package func zero(_ offset: Int, _ count: Int, _ flags: NBDFlags = []) throws(NBDFailure) {
        try check(unsafe nbd_zero(handle, UInt64(count), UInt64(offset), flags.rawValue))
    }

    package func trim(_ offset: Int, _ count: Int, _ flags: NBDFlags = []) throws(NBDFailure) {
        try check(unsafe nbd_trim(handle, UInt64(count), UInt64(offset), flags.rawValue))
    }

    package func cache(_ offset: Int, _ count: Int) throws(NBDFailure) {
        try check(unsafe nbd_cache(handle, UInt64(count), UInt64(offset), 0))
    }

    package func flush() throws(NBDFailure) { try check(unsafe nbd_flush(handle, 0)) }
}
