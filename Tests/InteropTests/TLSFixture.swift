import Foundation
import TestSupport

/// How a client proves who it is.
enum Proof: String, CaseIterable, CustomStringConvertible {
    case certificate, key
    var description: String { rawValue }
}

/// A server with TLS, and clients that may use it: `bob` has a certificate, `alice` a key.
final class TLSFixture {
    let pki: PKI
    let live: LiveFixture
    /// Bob's directory.
    let bob: String
    static let aliceKey = String(repeating: "0123456789abcdef", count: 4)

    var server: ServerUnderTest { live.server }

    init(options: [String] = [], prepare: (PKI) throws -> [String] = { _ in [] }) throws {
        pki = try PKI()
        bob = try pki.client("bob", extra: ["dns_name = bob.example.org"])
        try pki.writeKeys(["alice": Self.aliceKey, "carol": String(Self.aliceKey.reversed())])
        live = try LiveFixture(
            options: ["--tls-certs", pki.server, "--tls-psk", pki.keys] + options
                + (try prepare(pki)))
    }

    /// The query part of a URI by which libnbd's programs prove who they are.
    func query(_ proof: Proof) -> String {
        switch proof {
        case .certificate: "tls-certificates=\(bob)"
        case .key: "tls-psk-file=\(pki.keys)"
        }
    }

    func user(_ proof: Proof) -> String { proof == .key ? "alice@" : "" }

    /// A live export over TCP, where TLS is required.
    func uri(_ target: String, _ proof: Proof) -> String {
        "nbds://\(user(proof))localhost:\(live.port)/vm1/\(target)?\(query(proof))"
    }

    /// The same for a client with these certificates.
    func uri(_ target: String, certificates: String) -> String {
        "nbds://localhost:\(live.port)/vm1/\(target)?tls-certificates=\(certificates)"
    }

    func uri(_ target: String, user: String, keys: String) -> String {
        "nbds://\(user)@localhost:\(live.port)/vm1/\(target)?tls-psk-file=\(keys)"
    }

    /// What qemu's programs are told of an export over TCP.
    func qemu(_ export: String, port: Int, _ proof: Proof) -> (object: String, image: String) {
        let image =
            "driver=nbd,server.type=inet,server.host=localhost,server.port=\(port)"
            + ",export=\(export),tls-creds=t0"
        switch proof {
        case .certificate:
            return ("tls-creds-x509,id=t0,dir=\(bob),endpoint=client", image)
        case .key:
            return (
                "tls-creds-psk,id=t0,dir=\(pki.directory.path),username=alice,endpoint=client",
                image
            )
        }
    }
}
