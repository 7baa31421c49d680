import CGnuTLS

@testable import TLS

/// A client's side of a session in memory.
@safe
final class TestClient {
    /// What a client proves itself with.
    enum Identity: Sendable {
        /// A directory with `ca-cert.pem`, and perhaps `client-cert.pem` and `client-key.pem`.
        case certificate(String)
        case key(user: String, bytes: [UInt8])
    }

    private let session: gnutls_session_t
    private let wire: UnsafeMutablePointer<Wire>
    private var certificates: gnutls_certificate_credentials_t?
    private var psk: gnutls_psk_client_credentials_t?

    // SAFETY (all): handles and wire belong to this object until deinit; what is passed to a call
    // lives through it.

    init(_ identity: Identity, priority: String = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK")
        throws(TLSFault)
    {
        var made: gnutls_session_t?
        let flags = GNUTLS_CLIENT.rawValue | GNUTLS_NONBLOCK.rawValue
        try TLSFault.check("gnutls_init", unsafe gnutls_init(&made, flags))
        guard let made = unsafe made else { throw .gnutls(call: "gnutls_init", code: -1) }
        unsafe session = unsafe made
        unsafe wire = .allocate(capacity: 1)
        unsafe wire.initialize(to: Wire(session: made, keys: [:]))
        unsafe gnutls_transport_set_ptr(session, wire)
        unsafe gnutls_transport_set_push_function(session) { unsafe Wire.push($0, $1, $2) }
        unsafe gnutls_transport_set_pull_function(session) { unsafe Wire.pull($0, $1, $2) }
        try TLSFault.check(
            "gnutls_priority_set_direct", unsafe gnutls_priority_set_direct(session, priority, nil))
        switch identity {
        case .certificate(let directory): try useCertificate(directory)
        case .key(let user, let bytes): try useKey(user, bytes)
        }
    }

    private func useCertificate(_ directory: String) throws(TLSFault) {
        var made: gnutls_certificate_credentials_t?
        _ = unsafe gnutls_certificate_allocate_credentials(&made)
        guard let credentials = unsafe made else { return }
        unsafe certificates = unsafe credentials
        try TLSFault.check(
            "trust",
            unsafe gnutls_certificate_set_x509_trust_file(
                credentials, directory + "/ca-cert.pem", GNUTLS_X509_FMT_PEM))
        // Fails where there is none: a client without a certificate.
        _ = unsafe gnutls_certificate_set_x509_key_file(
            credentials, directory + "/client-cert.pem", directory + "/client-key.pem",
            GNUTLS_X509_FMT_PEM)
        // A client whose authority the server does not know sends its certificate all the same.
        unsafe gnutls_certificate_set_flags(credentials, 0)
        try TLSFault.check(
            "credentials",
            unsafe gnutls_credentials_set(
                session, GNUTLS_CRD_CERTIFICATE, UnsafeMutableRawPointer(credentials)))
    }

    private func useKey(_ user: String, _ bytes: [UInt8]) throws(TLSFault) {
        var made: gnutls_psk_client_credentials_t?
        _ = unsafe gnutls_psk_allocate_client_credentials(&made)
        guard let credentials = unsafe made else { return }
        unsafe psk = unsafe credentials
        var bytes = bytes
        let code = unsafe bytes.withUnsafeMutableBufferPointer { buffer in
            var datum = unsafe gnutls_datum_t(data: buffer.baseAddress, size: UInt32(buffer.count))
            return unsafe gnutls_psk_set_client_credentials(
                credentials, user, &datum, GNUTLS_PSK_KEY_RAW)
        }
        try TLSFault.check("key", code)
        try TLSFault.check(
            "credentials",
            unsafe gnutls_credentials_set(
                session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(credentials)))
    }

    deinit {
        unsafe gnutls_deinit(session)
        if let certificates = unsafe certificates {
            unsafe gnutls_certificate_free_credentials(certificates)
        }
        if let psk = unsafe psk { unsafe gnutls_psk_free_client_credentials(psk) }
        unsafe wire.deinitialize(count: 1)
        unsafe wire.deallocate()
    }

    /// Runs a call while the client may read these bytes; returns its code and what is left of
    /// them.
    private func with(_ input: inout [UInt8], _ body: (gnutls_session_t) -> Int) -> Int {
        let code = unsafe input.withUnsafeBytes { bytes in
            unsafe wire.pointee.input = bytes.baseAddress
            unsafe wire.pointee.inputCount = bytes.count
            unsafe wire.pointee.inputTaken = 0
            defer {
                unsafe wire.pointee.input = nil
                unsafe wire.pointee.inputCount = 0
            }
            return unsafe body(session)
        }
        input.removeFirst(unsafe wire.pointee.inputTaken)
        unsafe wire.pointee.inputTaken = 0
        return code
    }

    /// Goes on with the handshake; GnuTLS's code.
    func handshake(_ input: inout [UInt8]) -> Int32 {
        Int32(unsafe with(&input) { Int(unsafe gnutls_handshake($0)) })
    }

    /// What the client wants to send.
    func takeOutgoing() -> [UInt8] {
        let bytes = unsafe wire.pointee.outbox
        unsafe wire.pointee.outbox = []
        return bytes
    }

    func send(_ bytes: [UInt8]) {
        var sent = 0
        while sent < bytes.count {
            let code = unsafe bytes.withUnsafeBytes { raw in
                unsafe gnutls_record_send(
                    session, raw.baseAddress.map { unsafe $0 + sent }, raw.count - sent)
            }
            guard code > 0 else { return }
            sent += code
        }
    }

    /// Opens what it can of the input.
    func receive(_ input: inout [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 20_000)
        while true {
            let before = input.count
            let code = unsafe with(&input) { session in
                unsafe buffer.withUnsafeMutableBytes {
                    unsafe gnutls_record_recv(session, $0.baseAddress, $0.count)
                }
            }
            // A message for the client itself gives no data, and there may be more behind it.
            if code > 0 {
                result += buffer[..<code]
            } else if input.count == before {
                return result
            }
        }
    }

    /// Changes the keys in the middle of the session (TLS 1.3), asking the server to do the same.
    func updateKeys() -> Int32 { unsafe gnutls_session_key_update(session, UInt32(GNUTLS_KU_PEER)) }

    /// Begins a second handshake (TLS 1.2).
    func renegotiate() -> Int32 {
        var none: [UInt8] = []
        return handshake(&none)
    }

    func sayGoodbye() { _ = unsafe gnutls_bye(session, GNUTLS_SHUT_WR) }
}
