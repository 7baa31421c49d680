import Foundation

/// Certificates and keys for one test, made by certtool.
///
/// Directories have the names that clients look for: `ca-cert.pem`, `client-cert.pem`,
/// `client-key.pem`; `server` has what `--tls-certs` wants.
package final class PKI {
    package let directory: TemporaryDirectory
    package var server: String { directory.file("server") }
    package var keys: String { directory.file("keys.psk") }

    /// Makes an authority and a server's certificate for `localhost` and 127.0.0.1.
    package init() throws {
        try Tool.require("certtool")
        directory = try TemporaryDirectory()
        try makeAuthority("ca")
        try makeCertificate(
            "server", role: "server", extra: ["dns_name = localhost", "ip_address = 127.0.0.1"])
    }

    /// A client's directory with a certificate of its own.
    @discardableResult
    package func client(
        _ name: String, authority: String = "ca", extra: [String] = [], expired: Bool = false
    ) throws -> String {
        try makeCertificate(
            name, role: "client", authority: authority, extra: extra, expired: expired)
        return directory.file(name)
    }

    /// A client's directory that only says whom to trust.
    package func clientWithoutCertificate(_ name: String = "nobody") throws -> String {
        let path = directory.file(name)
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        try copy(directory.file("ca.pem"), to: path + "/ca-cert.pem")
        return path
    }

    /// Makes a self-signed authority.
    package func makeAuthority(_ name: String) throws {
        try makeKey(directory.file(name + "-key.pem"))
        let template = """
            cn = "Test \(name)"
            ca
            cert_signing_key
            crl_signing_key
            expiration_days = 2
            """
        try Files.write(template, to: directory.file(name + ".info"))
        try certtool(
            "--generate-self-signed", "--load-privkey", directory.file(name + "-key.pem"),
            "--template", directory.file(name + ".info"), "--outfile",
            directory.file(name + ".pem"))
    }

    /// Makes (again) the certificate of a role.
    package func makeCertificate(
        _ name: String, role: String, authority: String = "ca", extra: [String] = [],
        expired: Bool = false
    ) throws {
        let path = directory.file(name)
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        let key = "\(path)/\(role)-key.pem"
        try makeKey(key)
        let times =
            expired
            ? [
                "activation_date = \"2020-01-01 00:00:00 UTC\"",
                "expiration_date = \"2020-01-02 00:00:00 UTC\"",
            ] : ["expiration_days = 2"]
        let template =
            ([
                "organization = \"Test\"", "cn = \"\(name)\"", "signing_key",
                "tls_www_\(role)",
            ] + times + extra).joined(separator: "\n")
        try Files.write(template, to: directory.file(name + ".info"))
        // Only a whole certificate ever has its final name.
        try certtool(
            "--generate-certificate", "--load-privkey", key, "--load-ca-certificate",
            directory.file(authority + ".pem"), "--load-ca-privkey",
            directory.file(authority + "-key.pem"), "--template", directory.file(name + ".info"),
            "--outfile", "\(path)/\(role)-cert.pem")
        try copy(directory.file("ca.pem"), to: path + "/ca-cert.pem")
    }

    /// Puts a list into the server's directory that takes these clients back.
    package func revoke(_ names: String...) throws {
        var arguments = [
            "--generate-crl", "--load-ca-certificate", directory.file("ca.pem"),
            "--load-ca-privkey", directory.file("ca-key.pem"), "--template",
            directory.file("crl.info"), "--outfile", server + "/ca-crl.pem",
        ]
        for name in names {
            arguments += ["--load-certificate", directory.file(name) + "/client-cert.pem"]
        }
        try Files.write("crl_next_update = 2\ncrl_number = 1\n", to: directory.file("crl.info"))
        try Command.run("certtool", arguments).output()
    }

    /// Writes the file of keys; returns the same for a client that knows only these.
    package func writeKeys(_ users: [String: String]) throws {
        try Files.write(
            users.map { "\($0):\($1)\n" }.joined(), to: keys)
    }

    private func makeKey(_ path: String) throws {
        try certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", path)
    }

    private func certtool(_ arguments: String...) throws {
        try Command.run("certtool", arguments).output()
    }

    private func copy(_ source: String, to target: String) throws {
        try? FileManager.default.removeItem(atPath: target)
        try FileManager.default.copyItem(atPath: source, toPath: target)
    }
}
