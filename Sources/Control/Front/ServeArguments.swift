package import ServerInterface

/// Reads the small languages of the `serve` and `export` options.
package enum ServeArguments {
    /// `ADDR:PORT`; an IPv6 address is in brackets.
    ///
    /// Port 0 asks for the first free one.
    package static func tcpEndpoint(
        _ text: String, option: String
    ) throws(ControlError) -> ListenEndpoint {
        let refusal = ControlError.invalidArgument(
            what: "\(option) '\(text)'", detail: "it must be ADDR:PORT, for example 127.0.0.1:10809"
        )
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...])
        else { throw refusal }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = String(host.dropFirst().dropLast())
        } else if host.contains(":") {
            throw refusal
        }
        guard !host.isEmpty else { throw refusal }
        return .tcp(host: host, port: port == 0 ? nil : port)
    }

    /// `TARGET=PATH[,format=FORMAT][,readonly]`.
    ///
    /// A comma in PATH is written twice.
    package static func disk(_ text: String) throws(ControlError) -> DomainDisk {
        func refusal(_ detail: String) -> ControlError {
            .invalidArgument(what: "--disk '\(text)'", detail: detail)
        }
        guard let equals = text.firstIndex(of: "=") else {
            throw refusal("it must be TARGET=PATH[,format=FORMAT][,readonly]")
        }
        let target = String(text[..<equals])
        var parts = commaSeparated(String(text[text.index(after: equals)...]))
        let path = parts.removeFirst()
        guard TargetName.isValid(target) else {
            throw refusal("'\(target)' is not a disk target such as vda")
        }
        guard !path.isEmpty else { throw refusal("the path is missing") }
        var readOnly = false
        var format: String?
        for part in parts {
            switch part {
            case "readonly": readOnly = true
            case _ where part.hasPrefix("format="): format = String(part.dropFirst(7))
            default: throw refusal("'\(part)' is not known, only format=FORMAT and readonly are")
            }
        }
        let found = try source(path, format: format)
        var disk = DomainDisk(
            target: target, kind: found.kind, path: found.path, readOnly: readOnly,
            image: found.image)
        disk.isKindAssumed = found.kind != .network && found.image == nil
        return disk
    }

    // Splits at single commas; a doubled comma is a comma.
    static func commaSeparated(_ text: String) -> [String] {
        var parts = [""]
        var rest = text[...]
        while let character = rest.popFirst() {
            if character != "," {
                parts[parts.count - 1].append(character)
            } else if rest.first == "," {
                rest.removeFirst()
                parts[parts.count - 1].append(",")
            } else {
                parts.append("")
            }
        }
        return parts
    }
}
