import NBDProtocol

/// Where an upstream is: the NBD server and export that hold a disk's bytes.
///
/// As text it is an NBD URI: `nbd://HOST[:PORT]/NAME`, `nbd+unix:///NAME?socket=PATH`, and `nbds`
/// in place of `nbd` for TLS, with `tls-certificates=DIR`, or with `tls-psk-file=FILE` and a user
/// name in front of the host.
package struct UpstreamAddress: Sendable, Hashable {
    /// Where the server listens.
    package enum Place: Sendable, Hashable {
        /// A socket's absolute path.
        case unix(path: String)
        case tcp(host: String, port: UInt16)
    }

    /// How the connection is secured.
    package enum Security: Sendable, Hashable {
        case plain
        /// A directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the
        /// server asks for them.
        case certificates(directory: String)
        case keys(file: String, user: String)
    }

    package var place: Place
    /// The export's name.
    package var name: String
    package var security: Security

    /// NBD's port.
    package static let defaultPort: UInt16 = 10_809
    /// What the kernel takes for the path of a socket, in bytes.
    private static let socketPathBytesMax = 107

    /// Throws when one of the parts cannot be.
    package init(
        place: Place, name: String, security: Security = .plain
    ) throws(UpstreamAddressFault) {
        self.place = place
        self.name = name
        self.security = security
        guard name.utf8.count <= ProtocolLimits.stringBytesMax else {
            throw UpstreamAddressFault(
                "the export's name has \(name.utf8.count) bytes, at most"
                    + " \(ProtocolLimits.stringBytesMax) are possible")
        }
        guard !Self.hasControl(name) else {
            throw UpstreamAddressFault("the export's name has a control character")
        }
        switch place {
        case .unix(let path):
            guard path.utf8.first == UInt8(ascii: "/"), !Self.hasControl(path) else {
                throw UpstreamAddressFault("socket '\(path)' must be an absolute path")
            }
            guard path.utf8.count <= Self.socketPathBytesMax else {
                throw UpstreamAddressFault(
                    "socket '\(path)' has \(path.utf8.count) bytes, at most"
                        + " \(Self.socketPathBytesMax) are possible")
            }
        case .tcp(let host, let port):
            guard !host.isEmpty, !Self.hasControl(host), port > 0 else {
                throw UpstreamAddressFault("'\(host):\(port)' is no host and port")
            }
        }
        switch (security, place) {
        case (.keys(let file, _), _) where file.isEmpty:
            throw UpstreamAddressFault("tls-psk-file is empty")
        case (.certificates, .unix):
            throw UpstreamAddressFault(
                "a server on a unix socket has no name that its certificate could be compared"
                    + " with: use tls-psk-file, or no TLS")
        case (.certificates(let directory), _) where directory.isEmpty:
            throw UpstreamAddressFault("tls-certificates is empty")
        default: break
        }
    }

    /// Of an address with TLS that does not say whom to trust: libraries exist that trust anybody
    /// then.
    package static let needsCredentials =
        "TLS needs tls-certificates=DIR with a ca-cert.pem, or tls-psk-file=FILE"

    private static func hasControl(_ text: String) -> Bool {
        text.utf8.contains { $0 < 0x20 || $0 == 0x7F }
    }

    /// Whether a text means an upstream, well formed or not.
    package static func isAddress(_ text: String) -> Bool {
        ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://", "nbds+vsock://"]
            .contains { text.hasPrefix($0) }
    }

    /// Reads a URI.
    package init(uri: String) throws(UpstreamAddressFault) {
        let parts = try Parts(uri)
        let place: Place
        if parts.scheme.hasSuffix("+unix") {
            guard let socket = parts.query["socket"] else {
                throw UpstreamAddressFault("'\(uri)' needs ?socket=PATH")
            }
            guard parts.host.isEmpty else {
                throw UpstreamAddressFault(
                    "'\(uri)' has a host: write nbd+unix:///NAME?socket=PATH")
            }
            place = .unix(path: socket)
        } else {
            place = .tcp(host: parts.host, port: parts.port ?? Self.defaultPort)
        }
        try self.init(place: place, name: parts.name, security: try parts.security(uri))
    }

    /// The address as a URI, always the same for the same address.
    package var uri: String {
        var user = ""
        var query: [String] = []
        var isSecure = true
        if case .unix(let path) = place { query.append("socket=" + Self.escaped(path)) }
        switch security {
        case .plain: isSecure = false
        case .certificates(let directory):
            query.append("tls-certificates=" + Self.escaped(directory))
        case .keys(let file, let name):
            user = name.isEmpty ? "" : Self.escaped(name, plain: []) + "@"
            query.append("tls-psk-file=" + Self.escaped(file))
        }
        let scheme = isSecure ? "nbds" : "nbd"
        let tail = Self.escaped(name) + (query.isEmpty ? "" : "?" + query.joined(separator: "&"))
        switch place {
        case .unix: return "\(scheme)+unix://\(user)/\(tail)"
        case .tcp(let host, let port):
            let shown = host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]" : host
            let number = port == Self.defaultPort ? "" : ":\(port)"
            return "\(scheme)://\(user)\(shown)\(number)/\(tail)"
        }
    }

    /// The same for the same export, however the connection is secured and its host is written.
    package var placeText: String {
        var plain = self
        plain.security = .plain
        if case .tcp(let host, let port) = place {
            plain.place = .tcp(host: host.lowercased(), port: port)
        }
        return plain.uri
    }

    private static let plainBytes = Set("-._~/:,@+".utf8)

    private static func escaped(
        _ text: String, plain: Set<UInt8> = plainBytes
    ) -> String {
        var bytes: [UInt8] = []
        for byte in text.utf8 {
            let isPlain =
                (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte)
                || (0x61...0x7A).contains(byte) || plain.contains(byte)
            if isPlain {
                bytes.append(byte)
            } else {
                let digits = Array(String(byte, radix: 16, uppercase: true).utf8)
                bytes += [UInt8(ascii: "%")] + (digits.count < 2 ? [UInt8(ascii: "0")] : [])
                bytes += digits
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Why a text names no upstream.
package struct UpstreamAddressFault: Error, Sendable, Hashable {
    package let detail: String
    package init(_ detail: String) { self.detail = detail }
}

/// A URI cut into its parts, percent signs resolved.
private struct Parts {
    let scheme: String
    var user = ""
    var host = ""
    var port: UInt16?
    var name = ""
    var query: [String: String] = [:]

    private static let schemes = ["nbd", "nbds", "nbd+unix", "nbds+unix"]
    private static let keys = ["socket", "tls-certificates", "tls-psk-file"]

    init(_ uri: String) throws(UpstreamAddressFault) {
        let halves = uri.split(separator: "://", maxSplits: 1, omittingEmptySubsequences: false)
        guard halves.count == 2, Self.schemes.contains(String(halves[0])) else {
            throw UpstreamAddressFault(
                "'\(uri)' is none of nbd://, nbds://, nbd+unix:// and nbds+unix://")
        }
        scheme = String(halves[0])
        guard !halves[1].contains(where: { $0 == "#" }) else {
            throw UpstreamAddressFault("'\(uri)' has a '#': write %23 for it in a name")
        }
        let marked = halves[1].split(
            separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        let place = marked[0].split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        try readAuthority(place[0], uri)
        if place.count == 2 { name = try Self.plain(place[1], uri) }
        if marked.count == 2 { try readQuery(marked[1], uri) }
    }

    private mutating func readAuthority(
        _ text: Substring, _ uri: String
    ) throws(UpstreamAddressFault) {
        var rest = text
        if let at = rest.lastIndex(of: "@") {
            user = try Self.plain(rest[..<at], uri)
            rest = rest[rest.index(after: at)...]
        }
        if rest.first == "[" {
            guard let end = rest.firstIndex(of: "]") else {
                throw UpstreamAddressFault("'\(uri)' has '[' without ']'")
            }
            host = String(rest[rest.index(after: rest.startIndex)..<end])
            rest = rest[rest.index(after: end)...]
        } else {
            let end = rest.firstIndex(of: ":") ?? rest.endIndex
            host = try Self.plain(rest[..<end], uri)
            rest = rest[end...]
        }
        guard !rest.isEmpty else { return }
        guard rest.first == ":", let number = UInt16(rest.dropFirst()), number > 0 else {
            throw UpstreamAddressFault("'\(uri)' has no port between 1 and 65535 behind its host")
        }
        port = number
    }

    private mutating func readQuery(_ text: Substring, _ uri: String) throws(UpstreamAddressFault) {
        for pair in text.split(separator: "&") {
            let halves = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let key = String(halves[0])
            guard halves.count == 2, Self.keys.contains(key), query[key] == nil else {
                throw UpstreamAddressFault(
                    "'\(uri)' has '\(pair)': socket=PATH, tls-certificates=DIR and"
                        + " tls-psk-file=FILE are known, each once")
            }
            query[key] = try Self.plain(halves[1], uri)
        }
        guard scheme.hasSuffix("+unix") || query["socket"] == nil else {
            throw UpstreamAddressFault("'\(uri)' has a socket: write nbd+unix:// for it")
        }
    }

    func security(_ uri: String) throws(UpstreamAddressFault) -> UpstreamAddress.Security {
        let directory = query["tls-certificates"]
        let file = query["tls-psk-file"]
        guard scheme.hasPrefix("nbds") else {
            guard directory == nil, file == nil, user.isEmpty else {
                throw UpstreamAddressFault("'\(uri)' names TLS credentials: write nbds for TLS")
            }
            return .plain
        }
        switch (directory, file) {
        case (.some, .some):
            throw UpstreamAddressFault(
                "'\(uri)' has tls-certificates and tls-psk-file: one of them is used")
        case (nil, let file?): return .keys(file: file, user: user)
        case (let directory?, nil): return .certificates(directory: directory)
        case (nil, nil): throw UpstreamAddressFault(UpstreamAddress.needsCredentials)
        }
    }

    private static func plain(
        _ text: Substring, _ uri: String
    ) throws(UpstreamAddressFault) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            let digits = String(decoding: rest.prefix(2), as: UTF8.self)
            guard digits.utf8.count == 2, let value = UInt8(digits, radix: 16), value > 0 else {
                throw UpstreamAddressFault("'\(uri)' has a '%' without two hexadecimal digits")
            }
            bytes.append(value)
            rest = rest.dropFirst(2)
        }
        guard let plain = String(validating: bytes, as: UTF8.self) else {
            throw UpstreamAddressFault("'\(uri)' is not UTF-8")
        }
        return plain
    }
}
