/// The files that decide who may connect and what they may use.
package struct SecurityConfiguration: Sendable, Hashable {
    /// Directory with `server-cert.pem`, `server-key.pem`, `ca-cert.pem` and perhaps `ca-crl.pem`.
    package var certificates: String?
    /// File of `user:hexkey` lines.
    package var keys: String?
    /// Whether a client without a certificate of the CA is refused.
    ///
    /// Users with a key need none.
    package var verifiesPeer: Bool
    /// File of access rules (``AccessRules``); nil: anyone who can connect may use everything.
    package var rules: String?

    /// Without files there is no TLS, and no rules.
    package init(
        certificates: String? = nil, keys: String? = nil, verifiesPeer: Bool = true,
        rules: String? = nil
    ) {
        self.certificates = certificates
        self.keys = keys
        self.verifiesPeer = verifiesPeer
        self.rules = rules
    }

    /// Whether listeners can offer TLS.
    package var offersTLS: Bool { certificates != nil || keys != nil }
}

/// Whether a listener speaks TLS.
package enum ListenerSecurity: String, Sendable, Hashable, Codable {
    /// Never.
    case plaintext
    /// When the client wants to, or has no rights otherwise.
    case selective
    /// Always.
    case required
}
