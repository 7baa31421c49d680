import ServerInterface

/// Reads where another NBD server's export is: the children of a `<source>` or `<scratch>`.
struct UpstreamElement {
    private let element: XMLElement

    init(_ element: XMLElement) { self.element = element }

    /// The address; throws what cannot be, as the end of "cannot be reached: ".
    func address() throws(UpstreamAddressFault) -> UpstreamAddress {
        let hosts = element.all("host")
        guard hosts.count == 1, let host = hosts.first else {
            throw UpstreamAddressFault("it has \(hosts.count) <host>, it needs one")
        }
        return try UpstreamAddress(
            place: try place(of: host), name: element.attribute("name") ?? "",
            security: try security())
    }

    private func place(of host: XMLElement) throws(UpstreamAddressFault) -> UpstreamAddress.Place {
        switch host.attribute("transport") ?? "tcp" {
        case "unix":
            guard let path = host.attribute("socket") else {
                throw UpstreamAddressFault("<host transport='unix'> needs socket='PATH'")
            }
            return .unix(path: path)
        case "tcp":
            guard let name = host.attribute("name") else {
                throw UpstreamAddressFault("<host> needs name='HOST'")
            }
            guard let text = host.attribute("port") else {
                return .tcp(host: name, port: UpstreamAddress.defaultPort)
            }
            guard let port = UInt16(text), port > 0 else {
                throw UpstreamAddressFault("port '\(text)' is none between 1 and 65535")
            }
            return .tcp(host: name, port: port)
        case let other:
            throw UpstreamAddressFault("transport '\(other)' is not served, use 'unix' or 'tcp'")
        }
    }

    /// libvirt's `tls='yes'`; credentials are named by an attribute of this project's own.
    private func security() throws(UpstreamAddressFault) -> UpstreamAddress.Security {
        let credentials = element.children.first {
            $0.name == "credentials" && $0.namespace == DomainDiskReader.namespace
        }
        switch element.attribute("tls") ?? "no" {
        case "no":
            guard credentials == nil else {
                throw UpstreamAddressFault("<credentials> needs <\(element.name) tls='yes'>")
            }
            return .plain
        case "yes":
            if let file = credentials?.attribute("psk") {
                return .keys(file: file, user: credentials?.attribute("user") ?? "")
            }
            guard let directory = credentials?.attribute("certs") else {
                throw UpstreamAddressFault(
                    "TLS needs <credentials xmlns='\(DomainDiskReader.namespace)' certs='DIR'/>, or"
                        + " psk='FILE' user='USER'")
            }
            return .certificates(directory: directory)
        case let other: throw UpstreamAddressFault("tls '\(other)' is neither 'yes' nor 'no'")
        }
    }
}
