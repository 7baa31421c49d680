import ServerInterface

/// Where the port for watching is, and who may be named by its address.
package struct MonitorSettings: Sendable, Hashable {
    package var host: String
    /// 0: any that is free.
    package var port: UInt16
    /// Names of this machine under which browsers and Prometheus may ask, besides addresses and its
    /// own.
    package var names: [String]

    /// The address of those who do not say another: programs of other machines cannot reach it.
    package static let loopback = "127.0.0.1"

    /// `ADDR:PORT`, or `:PORT` and `PORT` for loopback.
    package init(_ text: String, names: [String] = []) throws(ControlError) {
        func refusal(_ detail: String) -> ControlError {
            .invalidArgument(what: "--metrics '\(text)'", detail: detail)
        }
        let short = text.hasPrefix(":") ? String(text.dropFirst()) : text
        let digits = text.split(separator: ":", omittingEmptySubsequences: false).last ?? ""
        guard !digits.isEmpty, digits.allSatisfy({ $0.isASCII && $0.isNumber }) else {
            throw refusal(
                "it must be ADDR:PORT, or a port of the loopback address, for example 9809")
        }
        guard let port = UInt16(digits) else {
            throw refusal("port \(digits) does not exist: choose one of 1 to 65535, or 0 for any")
        }
        if short.allSatisfy({ $0.isASCII && $0.isNumber }) {
            self.init(host: Self.loopback, port: port, names: names)
            return
        }
        guard
            case .tcp(let host, _)? = try? ServeArguments.tcpEndpoint(text, option: "--metrics")
        else {
            throw refusal(
                "an IPv6 address is written in brackets, for example [::1]:9809; otherwise it must"
                    + " be ADDR:PORT")
        }
        self.init(host: host, port: port, names: names)
    }

    package init(host: String, port: UInt16, names: [String] = []) {
        self.host = host
        self.port = port
        self.names = names
    }
}

/// Which `Host` a request may name.
///
/// A page of the Internet can have its own name resolve to an address of this machine (DNS
/// rebinding); a browser then lets it read the answers as its own. It cannot do so under an address
/// or a name of this machine, so only these are answered.
package struct HostRule: Sendable, Hashable {
    private let names: Set<String>
    private let allowsAll: Bool

    /// `*` among the names allows every name.
    package init(names: [String], ownName: String) {
        self.names = Set(
            (names + [ownName, "localhost"]).filter { !$0.isEmpty }.map(Self.plain))
        allowsAll = names.contains("*")
    }

    /// Whether a request with this header may be answered; a request of HTTP/1.0 may have none.
    package func allows(_ header: String?) -> Bool {
        guard !allowsAll, let header else { return true }
        guard let host = Self.host(of: header) else { return false }
        return Self.isAddress(host) || names.contains(Self.plain(host))
    }

    private static func plain(_ name: String) -> String {
        let lower = name.lowercased()
        return lower.hasSuffix(".") ? String(lower.dropLast()) : lower
    }

    /// The header without its port; nil when it is none.
    private static func host(of header: String) -> String? {
        if header.hasPrefix("[") {
            guard let end = header.firstIndex(of: "]") else { return nil }
            let rest = header[header.index(after: end)...]
            guard rest.isEmpty || isPort(rest) else { return nil }
            return String(header[...end])
        }
        guard let colon = header.firstIndex(of: ":") else { return header.isEmpty ? nil : header }
        guard isPort(header[colon...]), colon != header.startIndex else { return nil }
        return String(header[..<colon])
    }

    private static func isPort(_ text: Substring) -> Bool {
        text.first == ":" && UInt16(text.dropFirst()) != nil
    }

    /// An IPv6 address in brackets, or four numbers; a name cannot look like either.
    private static func isAddress(_ host: String) -> Bool {
        if host.hasPrefix("[") {
            return host.dropFirst().dropLast().allSatisfy {
                $0.isASCII && ($0.isHexDigit || $0 == ":" || $0 == ".")
            }
        }
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4
            && parts.allSatisfy { part in
                part.allSatisfy { $0.isASCII && $0.isNumber } && UInt8(part) != nil
            }
    }
}
