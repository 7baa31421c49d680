import CGnuTLS
import SystemLayer

/// Which files hold a server's credentials, by the names that qemu and nbdkit use.
package struct TLSFiles: Sendable, Hashable {
    /// Directory with `server-cert.pem`, `server-key.pem`, `ca-cert.pem` and, if it is there,
    /// `ca-crl.pem`.
    package var certificates: String?
    /// File of `user:hexkey` lines.
    package var keys: String?
    /// Whether a client without a certificate of our CA is refused; users with a key need none.
    package var verifiesPeer: Bool

    package init(certificates: String?, keys: String?, verifiesPeer: Bool = true) {
        self.certificates = certificates
        self.keys = keys
        self.verifiesPeer = verifiesPeer
    }
}

/// A server's secrets and what it trusts, as they were when they were loaded.
///
/// Never changed after `init`: a reload makes new ones, and sessions keep those they began with.
// SAFETY (unchecked Sendable): GnuTLS lets any number of sessions read credentials at once, and
// nothing writes them after `init`.
@safe
package final class TLSCredentials: @unchecked Sendable {
    // SAFETY (Sendable): set up in init and only read afterwards, which GnuTLS allows from any
    // number of threads.
    let certificates: gnutls_certificate_credentials_t?
    let psk: gnutls_psk_server_credentials_t?
    let priority: gnutls_priority_t
    let keys: [[UInt8]: [UInt8]]
    /// Whether clients are asked for certificates, which are then verified.
    package let verifiesPeer: Bool

    /// TLS 1.2 and 1.3, authenticated ciphers with AES-GCM first.
    ///
    /// The server's order counts: a key bound to SHA-256 otherwise lets clients choose ChaCha20,
    /// which costs three times as much. Without RSA key exchange every session has forward secrecy,
    /// but for clients with a key that can do no better.
    private static let priorities =
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
        + ":-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:-RSA:%SERVER_PRECEDENCE"
    /// DHE in front: with ECDHE and a key TLS 1.2 has no AES-GCM here.
    private static let keyExchangesWithKeys = ":+DHE-PSK:+ECDHE-PSK:+PSK"

    /// Loads everything; a fault names the file.
    package init(_ files: TLSFiles) throws(TLSFault) {
        let keys = try files.keys.map { path throws(TLSFault) in try Self.loadKeys(path) }
        let priority = try unsafe Self.makePriority(withKeys: keys != nil)
        var certificates: gnutls_certificate_credentials_t?
        do throws(TLSFault) {
            if let directory = files.certificates {
                unsafe certificates = try Self.loadCertificates(
                    directory, verifiesPeer: files.verifiesPeer)
            }
            unsafe psk = keys == nil ? nil : try Self.makePSK()
        } catch {
            // SAFETY: both were made above and nobody else has them.
            unsafe gnutls_priority_deinit(priority)
            if let certificates = unsafe certificates {
                unsafe gnutls_certificate_free_credentials(certificates)
            }
            throw error
        }
        unsafe self.certificates = unsafe certificates
        unsafe self.priority = unsafe priority
        self.keys = keys ?? [:]
        verifiesPeer = files.certificates != nil && files.verifiesPeer
    }

    deinit {
        // SAFETY: sessions keep their credentials, so none uses them any more.
        if let certificates = unsafe certificates {
            unsafe gnutls_certificate_free_credentials(certificates)
        }
        if let psk = unsafe psk { unsafe gnutls_psk_free_server_credentials(psk) }
        unsafe gnutls_priority_deinit(priority)
    }

    // SAFETY (all below): locals are passed by reference for the time of a call; what a call makes
    // is returned or freed.

    private static func makePriority(withKeys: Bool) throws(TLSFault) -> gnutls_priority_t {
        var priority: gnutls_priority_t?
        let text = priorities + (withKeys ? keyExchangesWithKeys : "")
        try TLSFault.check(
            "gnutls_priority_init", unsafe gnutls_priority_init(&priority, text, nil))
        guard let priority = unsafe priority else {
            throw .gnutls(call: "gnutls_priority_init", code: GNUTLS_E_MEMORY_ERROR)
        }
        return unsafe priority
    }

    private static func makePSK() throws(TLSFault) -> gnutls_psk_server_credentials_t {
        var credentials: gnutls_psk_server_credentials_t?
        try TLSFault.check(
            "gnutls_psk_allocate_server_credentials",
            unsafe gnutls_psk_allocate_server_credentials(&credentials))
        guard let credentials = unsafe credentials else {
            throw .gnutls(
                call: "gnutls_psk_allocate_server_credentials", code: GNUTLS_E_MEMORY_ERROR)
        }
        unsafe gnutls_psk_set_server_credentials_function2(credentials) { session, name, key in
            unsafe TLSSession.findKey(session, name, key)
        }
        _ = unsafe gnutls_psk_set_server_known_dh_params(credentials, GNUTLS_SEC_PARAM_MEDIUM)
        return unsafe credentials
    }

    private static func loadCertificates(
        _ directory: String, verifiesPeer: Bool
    ) throws(TLSFault) -> gnutls_certificate_credentials_t {
        // SAFETY: what is made here is returned or, on a fault, freed; files' bytes are lent for a
        // call.
        var made: gnutls_certificate_credentials_t?
        try TLSFault.check(
            "gnutls_certificate_allocate_credentials",
            unsafe gnutls_certificate_allocate_credentials(&made))
        guard let credentials = unsafe made else {
            throw .gnutls(
                call: "gnutls_certificate_allocate_credentials", code: GNUTLS_E_MEMORY_ERROR)
        }
        do throws(TLSFault) {
            let certificate = directory + "/server-cert.pem"
            let key = directory + "/server-key.pem"
            let code = try unsafe withFile(certificate) { certificate throws(TLSFault) in
                try unsafe withFile(key) { key throws(TLSFault) in
                    unsafe gnutls_certificate_set_x509_key_mem2(
                        credentials, certificate, key, GNUTLS_X509_FMT_PEM, nil, 0)
                }
            }
            guard code >= 0 else { throw .file(path: certificate, detail: TLSFault.text(of: code)) }
            if verifiesPeer { try unsafe loadTrust(directory, into: credentials) }
        } catch {
            unsafe gnutls_certificate_free_credentials(credentials)
            throw error
        }
        return unsafe credentials
    }

    private static func loadTrust(
        _ directory: String, into credentials: gnutls_certificate_credentials_t
    ) throws(TLSFault) {
        // SAFETY: the credentials are the caller's; files' bytes are lent for a call.
        let authority = directory + "/ca-cert.pem"
        let trusted = try unsafe withFile(authority) {
            unsafe gnutls_certificate_set_x509_trust_mem(credentials, $0, GNUTLS_X509_FMT_PEM)
        }
        guard trusted > 0 else {
            let detail = trusted == 0 ? "it holds no certificate" : TLSFault.text(of: trusted)
            throw .file(path: authority, detail: detail)
        }
        let revoked = directory + "/ca-crl.pem"
        guard try read(revoked) != nil else { return }
        let lists = try unsafe withFile(revoked) {
            unsafe gnutls_certificate_set_x509_crl_mem(credentials, $0, GNUTLS_X509_FMT_PEM)
        }
        // An empty list would let everybody in whom it was to keep out.
        guard lists > 0 else {
            let detail = lists == 0 ? "it holds no list" : TLSFault.text(of: lists)
            throw .file(path: revoked, detail: detail)
        }
    }

    private static func loadKeys(_ path: String) throws(TLSFault) -> [[UInt8]: [UInt8]] {
        guard let bytes = try read(path) else {
            throw .file(path: path, detail: SystemFault.text(for: Errno.notFound))
        }
        let keys: [[UInt8]: [UInt8]]
        do throws(KeyFile.Fault) {
            keys = try KeyFile.parse(bytes)
        } catch {
            throw .file(path: path, detail: "line \(error.line): \(error.detail)")
        }
        guard !keys.isEmpty else { throw .file(path: path, detail: "it holds no user:hexkey line") }
        return keys
    }

    // MARK: Files

    /// Larger files are a mistake.
    private static let fileBytesMax = 16 << 20

    private static func read(_ path: String) throws(TLSFault) -> [UInt8]? {
        do throws(SystemFault) {
            return try StateFiles.read(path, limit: fileBytesMax)
        } catch {
            throw .file(path: path, detail: error.errorText)
        }
    }

    /// Lends a file's bytes; they are wiped afterwards, as they may be a key.
    private static func withFile(
        _ path: String, _ body: (UnsafePointer<gnutls_datum_t>) throws(TLSFault) -> Int32
    ) throws(TLSFault) -> Int32 {
        guard var bytes = try read(path) else {
            throw .file(path: path, detail: SystemFault.text(for: Errno.notFound))
        }
        // SAFETY: the datum and the bytes it names live through the call.
        return try unsafe bytes.withUnsafeMutableBufferPointer { buffer throws(TLSFault) in
            defer { unsafe gnutls_memset(buffer.baseAddress, 0, buffer.count) }
            var datum = unsafe gnutls_datum_t(
                data: buffer.baseAddress, size: UInt32(buffer.count))
            return try unsafe body(&datum)
        }
    }
}
