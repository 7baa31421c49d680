import CGnuTLS

/// What a session's callbacks read from and write to, at an address that the library keeps.
@safe
struct Wire {
    let session: gnutls_session_t
    let keys: [[UInt8]: [UInt8]]
    /// The purpose that a client's certificate must allow, if it names any.
    var purpose: gnutls_typed_vdata_st

    /// Bytes of the peer, lent for the time of one call.
    var input: UnsafeRawPointer?
    var inputCount = 0
    var inputTaken = 0
    /// Room for sealed bytes, lent for the time of one call.
    var output: UnsafeMutableRawPointer?
    var outputRoom = 0
    var outputUsed = 0
    /// Sealed bytes for which there was no room.
    var outbox: [UInt8] = []

    init(session: gnutls_session_t, keys: [[UInt8]: [UInt8]]) {
        // SAFETY: the purpose is a constant string of the program, which the library only reads.
        unsafe self.session = unsafe session
        self.keys = keys
        unsafe purpose = unsafe gnutls_typed_vdata_st(
            type: GNUTLS_DT_KEY_PURPOSE_OID,
            data: UnsafeMutableRawPointer(mutating: nbdpull_KP_CLIENT)
                .assumingMemoryBound(to: UInt8.self),
            size: 0)
    }

    var hasInput: Bool { inputTaken < inputCount }

    // SAFETY (all below): the library hands back the wire pointer that the session was given, which
    // lives as long as the session; lent ranges are live, and every copy stays within them.

    /// Gives the library bytes of the peer; none left reads as "would block".
    static func pull(
        _ pointer: UnsafeMutableRawPointer?, _ target: UnsafeMutableRawPointer?, _ wanted: Int
    ) -> Int {
        guard let wire = unsafe pointer?.assumingMemoryBound(to: Wire.self),
            let target = unsafe target
        else { return -1 }
        let count = min(wanted, unsafe wire.pointee.inputCount - wire.pointee.inputTaken)
        guard count > 0, let input = unsafe wire.pointee.input else {
            unsafe gnutls_transport_set_errno(wire.pointee.session, nbdpull_EAGAIN)
            return -1
        }
        unsafe target.copyMemory(
            from: input + wire.pointee.inputTaken, byteCount: count)
        unsafe wire.pointee.inputTaken += count
        return count
    }

    /// Takes sealed bytes: into the lent room as long as it lasts, then into the outbox.
    static func push(
        _ pointer: UnsafeMutableRawPointer?, _ source: UnsafeRawPointer?, _ count: Int
    ) -> Int {
        guard let wire = unsafe pointer?.assumingMemoryBound(to: Wire.self),
            let source = unsafe source
        else { return -1 }
        var done = 0
        if let output = unsafe wire.pointee.output {
            let used = unsafe wire.pointee.outputUsed
            done = min(count, unsafe wire.pointee.outputRoom - used)
            unsafe (output + used).copyMemory(from: source, byteCount: done)
            unsafe wire.pointee.outputUsed += done
        }
        guard done < count else { return count }
        guard unsafe wire.pointee.outbox.count + count <= TLSSession.outboxBytesMax else {
            return -1
        }
        unsafe wire.pointee.outbox.append(
            contentsOf: UnsafeRawBufferPointer(start: source + done, count: count - done))
        return count
    }
}

extension TLSSession {
    /// Answers which key a user has; an unknown one makes the library go on with a random key, so
    /// that the peer cannot tell a wrong name from a wrong key.
    static func findKey(
        _ session: gnutls_session_t?, _ name: UnsafePointer<gnutls_datum_t>?,
        _ key: UnsafeMutablePointer<gnutls_datum_t>?
    ) -> Int32 {
        // SAFETY: the session's pointer is its wire; name and key are the library's for the call.
        guard let session = unsafe session, let key = unsafe key, let name = unsafe name,
            let pointer = unsafe gnutls_session_get_ptr(session)
        else { return -1 }
        let wire = unsafe pointer.assumingMemoryBound(to: Wire.self)
        let user = unsafe Array(
            UnsafeBufferPointer(start: name.pointee.data, count: Int(name.pointee.size)))
        guard let found = unsafe wire.pointee.keys[user] else { return 1 }
        return unsafe found.withUnsafeBytes { bytes in
            unsafe nbdpull_give_key(key, bytes.baseAddress, UInt32(bytes.count))
        }
    }
}
