package import ServerInterface

/// Writes NBD URIs (NBD URI specification) for exports of this server.
package enum ExportURI {
    /// `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`, percent-encoded; IPv6 addresses in
    /// brackets; `nbds` where TLS is required.
    ///
    /// A slash in `name` is kept: everything after the first one is the export's name.
    package static func text(
        endpoint: ListenEndpoint, name: String, security: ListenerSecurity = .plaintext
    ) -> String {
        let scheme = security == .required ? "nbds" : "nbd"
        switch endpoint {
        case .unix(let path, _):
            return "\(scheme)+unix:///\(encoded(name))?socket=\(encoded(path))"
        case .tcp(let host, let port):
            let place = host.contains(":") ? "[\(encodedIPv6(host))]" : encoded(host)
            let suffix = port.map { ":\($0)" } ?? ""
            return "\(scheme)://\(place)\(suffix)/\(encoded(name))"
        }
    }

    /// The text with every byte but RFC 3986's unreserved ones and `/` written as `%XX`.
    package static func encoded(_ text: String) -> String {
        var result = ""
        for byte in text.utf8 {
            if isUnreserved(byte) || byte == UInt8(ascii: "/") {
                result.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                result += hex(byte)
            }
        }
        return result
    }

    // A zone identifier's `%` is written `%25` (RFC 6874); colons stay.
    private static func encodedIPv6(_ host: String) -> String {
        host.split(separator: "%", omittingEmptySubsequences: false).map(String.init)
            .joined(separator: "%25")
    }

    private static func isUnreserved(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        case UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "~"): true
        default: false
        }
    }

    private static func hex(_ byte: UInt8) -> String {
        let digits = Array("0123456789ABCDEF")
        return "%\(digits[Int(byte >> 4)])\(digits[Int(byte & 15)])"
    }
}

/// Decides whether a listener may carry plaintext.
package enum PlaintextPolicy {
    /// Refuses a TCP listener that other machines can reach, unless it requires TLS or plaintext
    /// was allowed.
    ///
    /// Loopback is `localhost`, `127.0.0.0/8` and `::1`; unix sockets always pass.
    package static func check(
        _ endpoint: ListenEndpoint, security: ListenerSecurity, allowPlaintext: Bool
    ) throws(ControlError) {
        guard case .tcp(let host, _) = endpoint, security != .required, !allowPlaintext,
            !isLoopback(host)
        else { return }
        throw ControlError(
            code: "plaintext-refused", libvirtCode: 84,
            message: "Operation not supported: plaintext TCP on '\(host)' is not allowed: "
                + "use TLS (--tls-certs or --tls-psk, and tls='yes' in a job's <server>), "
                + "a loopback address, a unix socket, or start the server with "
                + "--allow-plaintext",
            httpStatus: 403)
    }

    /// Whether `host` can only mean this machine.
    package static func isLoopback(_ host: String) -> Bool {
        if host == "localhost" || host == "::1" { return true }
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4, parts.first == "127" else { return false }
        return parts.allSatisfy { UInt8($0) != nil }
    }
}
