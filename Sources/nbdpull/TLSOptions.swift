import ArgumentParser
import Control

/// The TLS options of `serve` and `export`: known, so that they are refused instead of ignored.
struct TLSOptions: ParsableArguments {
    @Option(
        help: "Directory with ca-cert.pem, server-cert.pem, server-key.pem. (not supported yet)")
    var tlsCerts: String?
    @Option(help: "File of user:hexkey lines. (not supported yet)")
    var tlsPsk: String?
    @Option(help: "yes or no. (not supported yet)")
    var tlsVerifyPeer: String?
    @Option(help: "Pattern for client certificates' names. (not supported yet)")
    var tlsAuthz: String?

    /// Throws when any of them was given.
    func refuse() throws(ControlError) {
        let given = [
            ("tls-certs", tlsCerts), ("tls-psk", tlsPsk), ("tls-verify-peer", tlsVerifyPeer),
            ("tls-authz", tlsAuthz),
        ]
        for (name, value) in given where value != nil { throw Self.unsupported(name) }
    }

    /// The refusal, naming the option.
    static func unsupported(_ name: String) -> ControlError {
        .operationUnsupported("TLS is not supported yet: leave out --\(name)")
    }
}
