import ArgumentParser
import Control
import ServerInterface

/// The options of `serve` and `export` that say who may connect, and what they may use.
struct TLSOptions: ParsableArguments {
    @Option(
        help: "Directory with ca-cert.pem, server-cert.pem, server-key.pem, and ca-crl.pem if any.")
    var tlsCerts: String?
    @Option(help: "File of pre-shared keys: user:hexkey lines.") var tlsPsk: String?
    @Option(help: "yes or no: refuse clients without a certificate from the CA. (default: yes)")
    var tlsVerifyPeer: String?
    @Option(help: "File of access rules: which certificates, keys, users and groups may use what.")
    var tlsAuthz: String?

    /// The options together.
    func configuration() throws(ControlError) -> SecurityConfiguration {
        try SecurityArguments.configuration(
            certs: tlsCerts, psk: tlsPsk, verifyPeer: tlsVerifyPeer, authz: tlsAuthz)
    }
}
