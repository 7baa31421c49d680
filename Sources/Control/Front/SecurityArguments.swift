package import ServerInterface

/// Turns the `--tls-…` options into the server's security settings.
package enum SecurityArguments {
    /// Checks the options against each other; the server reads the files.
    ///
    /// - Parameter verifyPeer: `yes`, `no`, or nil for yes.
    package static func configuration(
        certs: String?, psk: String?, verifyPeer: String?, authz: String?
    ) throws(ControlError) -> SecurityConfiguration {
        let verifies: Bool
        switch verifyPeer {
        case nil, "yes": verifies = true
        case "no": verifies = false
        case let other?:
            throw .invalidArgument(
                what: "--tls-verify-peer '\(other)'", detail: "it must be yes or no")
        }
        guard verifyPeer == nil || certs != nil else {
            throw .invalidArgument(
                what: "--tls-verify-peer",
                detail: "it needs --tls-certs; users of --tls-psk are "
                    + "always verified by their keys")
        }
        return SecurityConfiguration(
            certificates: certs.map(ServeArguments.absolutePath),
            keys: psk.map(ServeArguments.absolutePath), verifiesPeer: verifies,
            rules: authz.map(ServeArguments.absolutePath))
    }

    /// How a listener that was asked for is served: TLS is required where it is configured, unless
    /// plaintext was allowed.
    package static func listener(
        _ security: SecurityConfiguration, allowPlaintext: Bool
    ) -> ListenerSecurity {
        guard security.offersTLS else { return .plaintext }
        return allowPlaintext ? .selective : .required
    }
}
