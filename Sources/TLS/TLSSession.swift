import CGnuTLS

/// The next step of a session's handshake.
package enum TLSProgress: Sendable, Equatable {
    /// More bytes of the peer are needed.
    case wantsInput
    /// The session is established.
    case established
    /// It has failed; the outbox has the alert for the peer.
    case failed(TLSFault)
}

/// The result of passing bytes through a session.
package struct TLSTransfer: Sendable, Equatable {
    /// Bytes of the source that are done with.
    package var consumed = 0
    /// Bytes that were put into the target.
    package var produced = 0
    /// Why nothing more will come in this direction; nil while it may.
    package var end: TLSEnd?
}

/// Why a session is over.
package enum TLSEnd: Sendable, Equatable {
    /// The peer has sent close_notify.
    case closed
    case failed(TLSFault)
}

/// One server-side TLS session: bytes in, bytes out, never a descriptor, never a wait.
///
/// Used by one thread at a time. What the session itself wants to say (handshake, key updates,
/// alerts) gathers in the outbox; it has to leave before anything that `encrypt` gives afterwards.
// SAFETY (unchecked Sendable): owned by one connection, which lives on one ring at a time; a
// message between rings hands it over whole.
@safe
package final class TLSSession: @unchecked Sendable {
    // SAFETY (Sendable): the ring that owns the connection is the only user; when the connection
    // moves, the session goes with it through a mailbox, whose lock orders the memory.
    let session: gnutls_session_t
    /// Kept alive: the library does not count its users.
    private let credentials: TLSCredentials
    private let wire: UnsafeMutablePointer<Wire>
    /// Nothing more is sent: the session has failed, or close_notify has been sent.
    private var isOver = false
    /// The peer has sent close_notify: it sends nothing more, but can still be sent data.
    private var peerHasClosed = false

    /// Most plaintext of one record, in bytes (RFC 8446, 5.1).
    package static let recordBytes = 16_384
    /// Room that one record needs at most with the ciphers we allow: header, nonce, tag, type.
    package static let sealedRecordBytesMax = recordBytes + 64
    /// Most that the outbox holds; a handshake's messages are far smaller.
    package static let outboxBytesMax = 1 << 20

    var verifiesPeer: Bool { credentials.verifiesPeer }

    /// A session at its beginning.
    package init(_ credentials: TLSCredentials) throws(TLSFault) {
        // SAFETY (all of init): the session and its wire belong to this object until deinit.
        var made: gnutls_session_t?
        try TLSFault.check("gnutls_init", unsafe gnutls_init(&made, sessionFlags))
        guard let made = unsafe made else {
            throw .gnutls(call: "gnutls_init", code: GNUTLS_E_MEMORY_ERROR)
        }
        do throws(TLSFault) {
            try unsafe Self.configure(made, credentials)
        } catch {
            unsafe gnutls_deinit(made)
            throw error
        }
        unsafe session = unsafe made
        self.credentials = credentials
        unsafe wire = .allocate(capacity: 1)
        unsafe wire.initialize(to: Wire(session: made, keys: credentials.keys))
        unsafe gnutls_session_set_ptr(session, wire)
        unsafe gnutls_transport_set_ptr(session, wire)
        unsafe gnutls_transport_set_push_function(session) { wire, bytes, count in
            unsafe Wire.push(wire, bytes, count)
        }
        unsafe gnutls_transport_set_pull_function(session) { wire, bytes, count in
            unsafe Wire.pull(wire, bytes, count)
        }
        if credentials.verifiesPeer {
            unsafe gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE)
            unsafe gnutls_session_set_verify_cert2(session, &wire.pointee.purpose, 1, 0)
        } else {
            unsafe gnutls_certificate_server_set_request(session, GNUTLS_CERT_IGNORE)
        }
    }

    private static func configure(
        _ session: gnutls_session_t, _ credentials: TLSCredentials
    ) throws(TLSFault) {
        // SAFETY: the credentials outlive the session, which keeps a reference to them.
        try TLSFault.check(
            "gnutls_priority_set", unsafe gnutls_priority_set(session, credentials.priority))
        if let certificates = unsafe credentials.certificates {
            try TLSFault.check(
                "gnutls_credentials_set",
                unsafe gnutls_credentials_set(
                    session, GNUTLS_CRD_CERTIFICATE, UnsafeMutableRawPointer(certificates)))
        }
        if let psk = unsafe credentials.psk {
            try TLSFault.check(
                "gnutls_credentials_set",
                unsafe gnutls_credentials_set(
                    session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(psk)))
        }
    }

    deinit {
        // SAFETY: nobody else has the session or its wire.
        unsafe gnutls_deinit(session)
        unsafe wire.deinitialize(count: 1)
        unsafe wire.deallocate()
    }

    // MARK: Handshake

    /// Goes on with the handshake; `consumed` of the transfer counts bytes of `cipher`.
    package func handshake(_ cipher: Span<UInt8>) -> (consumed: Int, TLSProgress) {
        lend(cipher)
        // SAFETY: the session is ours; callbacks use what was just lent, and only during the call.
        var code: Int32
        var before: Int
        repeat {
            before = unsafe wire.pointee.inputTaken
            code = unsafe gnutls_handshake(session)
            // A warning ends the call although there is more to read.
        } while code != GNUTLS_E_SUCCESS && gnutls_error_is_fatal(code) == 0
            && hasMoved(from: before)
        let consumed = takeBack()
        if code == GNUTLS_E_SUCCESS { return (consumed, .established) }
        if gnutls_error_is_fatal(code) == 0 { return (consumed, .wantsInput) }
        return (consumed, .failed(fail(code)))
    }

    /// Notes the end and leaves the fitting alert in the outbox.
    private func fail(_ code: Int32) -> TLSFault {
        let detail = text(of: code)
        if !isOver {
            isOver = true
            // SAFETY: as for handshake; nothing is lent, so the alert goes to the outbox.
            _ = unsafe gnutls_alert_send_appropriate(session, code)
        }
        return .session(code: code, detail: detail)
    }

    private func text(of code: Int32) -> String {
        // SAFETY (all below): constant strings, or strings freed after they are copied.
        switch code {
        case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
            let status = unsafe gnutls_session_get_verify_cert_status(session)
            var out = unsafe gnutls_datum_t()
            let type = GNUTLS_CRT_X509
            guard
                unsafe gnutls_certificate_verification_status_print(status, type, &out, 0) == 0,
                let bytes = unsafe out.data
            else { return TLSFault.text(of: code) }
            defer { unsafe nbdpull_free_datum(&out) }
            let count = Int(unsafe out.size)
            return unsafe String(
                decoding: UnsafeBufferPointer(start: bytes, count: count), as: UTF8.self
            ).trimmingSuffix
        case GNUTLS_E_FATAL_ALERT_RECEIVED:
            let alert = unsafe gnutls_alert_get(session)
            guard let name = unsafe gnutls_alert_get_name(alert) else { break }
            return unsafe "the client refused: \(String(cString: name))"
        case GNUTLS_E_REHANDSHAKE:
            return "the client asked for a new handshake, which is not allowed"
        default: break
        }
        return TLSFault.text(of: code)
    }

    // MARK: Data

    /// Opens records: takes bytes of `cipher` until `plain` is full or no whole record is left.
    package func decrypt(_ cipher: Span<UInt8>, into plain: inout MutableRawSpan) -> TLSTransfer {
        var result = TLSTransfer()
        guard !isOver, !peerHasClosed else {
            result.end = .closed
            return result
        }
        lend(cipher)
        let room = plain.byteCount
        // SAFETY: the library writes at most `room - produced` bytes into the span's own memory.
        unsafe plain.withUnsafeMutableBytes { target in
            while result.produced < room, result.end == nil {
                let before = unsafe wire.pointee.inputTaken
                let code = unsafe gnutls_record_recv(
                    session, target.baseAddress.map { unsafe $0 + result.produced },
                    room - result.produced)
                if code > 0 {
                    result.produced += code
                } else if code == 0 {
                    peerHasClosed = true
                    result.end = .closed
                } else if gnutls_error_is_fatal(Int32(code)) != 0
                    || code == Int(GNUTLS_E_REHANDSHAKE)
                {
                    result.end = .failed(fail(Int32(code)))
                } else if unsafe wire.pointee.inputTaken == before {
                    return
                }
            }
        }
        result.consumed = takeBack()
        return result
    }

    /// Seals one record of at most `recordBytes` from `plain`.
    ///
    /// `cipher` must have room for `sealedRecordBytesMax`.
    package func encrypt(_ plain: Span<UInt8>, into cipher: inout MutableRawSpan) -> TLSTransfer {
        var result = TLSTransfer()
        guard !isOver else {
            result.end = .closed
            return result
        }
        let count = min(plain.count, Self.recordBytes)
        // SAFETY: both spans live through the call; the callback writes within the room lent to it.
        unsafe plain.withUnsafeBufferPointer { source in
            unsafe cipher.withUnsafeMutableBytes { target in
                unsafe wire.pointee.output = target.baseAddress
                unsafe wire.pointee.outputRoom = target.count
                unsafe wire.pointee.outputUsed = 0
                let code = unsafe gnutls_record_send(session, source.baseAddress, count)
                result.produced = unsafe wire.pointee.outputUsed
                unsafe wire.pointee.output = nil
                unsafe wire.pointee.outputRoom = 0
                if code >= 0 {
                    result.consumed = code
                } else {
                    result.end = .failed(fail(Int32(code)))
                }
            }
        }
        return result
    }

    /// Puts close_notify into the outbox, once; also if the peer has sent its own.
    package func sayGoodbye() {
        guard !isOver else { return }
        isOver = true
        // SAFETY: the session is ours; without output lent, bytes go to the outbox.
        _ = unsafe gnutls_bye(session, GNUTLS_SHUT_WR)
    }

    /// Whether the session itself has something to say.
    package var hasOutbox: Bool { unsafe !wire.pointee.outbox.isEmpty }

    /// Takes what the session itself has to say, from its beginning.
    package func takeOutbox(atMost limit: Int = outboxBytesMax) -> [UInt8] {
        // SAFETY: the wire is ours.
        let bytes = Array(unsafe wire.pointee.outbox.prefix(limit))
        unsafe wire.pointee.outbox.removeFirst(bytes.count)
        return bytes
    }

    // MARK: Lending

    private func lend(_ cipher: Span<UInt8>) {
        // SAFETY: the pointer is used by calls within the caller's frame only, where the span
        // lives; takeBack ends the loan.
        unsafe cipher.withUnsafeBufferPointer { source in
            unsafe wire.pointee.input = unsafe UnsafeRawPointer(source.baseAddress)
            unsafe wire.pointee.inputCount = source.count
            unsafe wire.pointee.inputTaken = 0
        }
    }

    private func hasMoved(from before: Int) -> Bool {
        unsafe wire.pointee.inputTaken > before && wire.pointee.hasInput
    }

    private func takeBack() -> Int {
        let taken = unsafe wire.pointee.inputTaken
        unsafe wire.pointee.input = nil
        unsafe wire.pointee.inputCount = 0
        unsafe wire.pointee.inputTaken = 0
        return taken
    }
}

// Without tickets nothing is resumed: handshakes are rare, and a revoked client must not stay in.
private let sessionFlags =
    GNUTLS_SERVER.rawValue | GNUTLS_NONBLOCK.rawValue | GNUTLS_NO_SIGNAL.rawValue
    | GNUTLS_NO_TICKETS.rawValue

extension String {
    fileprivate var trimmingSuffix: String {
        var text = self
        while text.last?.isWhitespace == true { text.removeLast() }
        return text
    }
}
