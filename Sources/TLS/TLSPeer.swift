import CGnuTLS

/// Who the peer of an established session has proved to be.
package struct TLSPeer: Sendable, Hashable {
    /// The certificate's subject, as `C=…,O=…,CN=…`.
    package var subject: String?
    /// Its alternative names: `dns:…`, `email:…`, `uri:…`.
    package var alternativeNames: [String]
    /// The user whose key it has.
    package var user: String?

    package init(subject: String? = nil, alternativeNames: [String] = [], user: String? = nil) {
        self.subject = subject
        self.alternativeNames = alternativeNames
        self.user = user
    }
}

extension TLSSession {
    /// The protocol version and cipher in use, for logs and tests: `TLS1.3 AES-128-GCM`.
    package var suite: String {
        // SAFETY: constant strings, copied.
        let version = unsafe gnutls_protocol_get_name(gnutls_protocol_get_version(session))
        let cipher = unsafe gnutls_cipher_get_name(gnutls_cipher_get(session))
        guard let version = unsafe version, let cipher = unsafe cipher else { return "none" }
        return unsafe "\(String(cString: version)) \(String(cString: cipher))"
    }

    /// The proved identity; only what was verified counts.
    package var peer: TLSPeer {
        var peer = TLSPeer()
        // SAFETY: what the library returns lives as long as the session and is copied.
        if unsafe gnutls_auth_client_get_type(session) == GNUTLS_CRD_PSK {
            if let name = unsafe gnutls_psk_server_get_username(session) {
                peer.user = unsafe String(validatingCString: name)
            }
            return peer
        }
        guard verifiesPeer else { return peer }
        var count: UInt32 = 0
        guard let list = unsafe gnutls_certificate_get_peers(session, &count), count > 0 else {
            return peer
        }
        var made: gnutls_x509_crt_t?
        guard unsafe gnutls_x509_crt_init(&made) == 0, let certificate = unsafe made else {
            return peer
        }
        defer { unsafe gnutls_x509_crt_deinit(certificate) }
        guard unsafe gnutls_x509_crt_import(certificate, list, GNUTLS_X509_FMT_DER) == 0 else {
            return peer
        }
        peer.subject = unsafe Self.subject(of: certificate)
        peer.alternativeNames = unsafe Self.alternativeNames(of: certificate)
        return peer
    }

    private static func subject(of certificate: gnutls_x509_crt_t) -> String? {
        var text = unsafe gnutls_datum_t()
        // SAFETY: the library allocates the text, which is freed after it is copied.
        guard unsafe gnutls_x509_crt_get_dn2(certificate, &text) == 0 else { return nil }
        defer { unsafe nbdpull_free_datum(&text) }
        let bytes = unsafe UnsafeBufferPointer(start: text.data, count: Int(text.size))
        return unsafe String(validating: bytes, as: UTF8.self)
    }

    /// Most names read from one certificate.
    private static let alternativeNamesMax: UInt32 = 64

    private static func alternativeNames(of certificate: gnutls_x509_crt_t) -> [String] {
        var names: [String] = []
        var buffer = [UInt8](repeating: 0, count: 1024)
        for index in 0..<alternativeNamesMax {
            var size = buffer.count
            // SAFETY: the library writes at most `size` bytes into the buffer, and says how many.
            let type = unsafe buffer.withUnsafeMutableBytes { bytes in
                unsafe gnutls_x509_crt_get_subject_alt_name(
                    certificate, index, bytes.baseAddress, &size, nil)
            }
            if type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE { break }
            guard type >= 0, size <= buffer.count, let prefix = prefix(of: type),
                let text = String(validating: buffer[..<size], as: UTF8.self)
            else { continue }
            names.append(prefix + text)
        }
        return names
    }

    private static func prefix(of type: Int32) -> String? {
        switch UInt32(type) {
        case GNUTLS_SAN_DNSNAME.rawValue: "dns:"
        case GNUTLS_SAN_RFC822NAME.rawValue: "email:"
        case GNUTLS_SAN_URI.rawValue: "uri:"
        default: nil
        }
    }
}
