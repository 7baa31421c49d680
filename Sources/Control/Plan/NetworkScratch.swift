import ServerInterface

/// Scratch on an export of another NBD server or on an image of a Ceph cluster, as a `<scratch>` of
/// a `<disk type='network'>` names it: this project's own addition to libvirt's form.
struct NetworkScratch {
    /// An NBD URI; of an image what people know it by.
    var path: String
    var image: ImageConfiguration?

    /// Protocols that can be named.
    static let protocols = ["nbd", "rbd"]

    /// Reads the element, which has the children of a disk's `<source>`.
    init(_ scratch: XMLElement, of target: String) throws(ControlError) {
        guard scratch.attribute("protocol") == "rbd" else {
            do throws(UpstreamAddressFault) {
                self.init(path: try UpstreamElement(scratch).address().uri)
            } catch {
                throw .scratchAddressInvalid(target, detail: error.detail)
            }
            return
        }
        // Nothing of the disk's own element says anything of its scratch.
        let disk = XMLElement(
            name: "disk", attributes: [XMLAttribute(name: "type", value: "network")])
        do throws(DomainImageReader.Fault) {
            let found = try DomainImageReader(disk, scratch, .network).read()
            self.init(path: found.path, image: found.image)
        } catch {
            throw .scratchAddressInvalid(target, detail: error.reason)
        }
    }

    private init(path: String, image: ImageConfiguration? = nil) {
        self.path = path
        self.image = image
    }
}

extension ScratchConfiguration {
    /// Writes scratch of a `<disk type='network'>` as it is read.
    func writeNetwork(to writer: inout XMLWriter) {
        if case .rbd(let rbd) = image?.layers.first?.place {
            return Self.write(rbd, to: &writer)
        }
        guard let address = try? UpstreamAddress(uri: path) else {
            return writer.empty("scratch", [("protocol", "nbd"), ("name", path)])
        }
        let tls = address.security == .plain ? nil : "yes"
        writer.element(
            "scratch", [("protocol", "nbd"), ("name", address.name), ("tls", tls)]
        ) { body in
            switch address.place {
            case .unix(let path):
                body.empty("host", [("transport", "unix"), ("socket", path)])
            case .tcp(let host, let port):
                body.empty("host", [("name", host), ("port", String(port))])
            }
            let namespace: (String, String?) = ("xmlns", DomainDiskReader.namespace)
            switch address.security {
            case .plain: break
            case .certificates(let directory):
                body.empty("credentials", [namespace, ("certs", directory)])
            case .keys(let file, let user):
                body.empty("credentials", [namespace, ("psk", file), ("user", user)])
            }
        }
    }

    private static func write(_ rbd: RBDImage, to writer: inout XMLWriter) {
        writer.element("scratch", [("protocol", "rbd"), ("name", rbd.name)]) { body in
            for host in rbd.hosts {
                body.empty("host", [("name", host.name), ("port", String(host.port))])
            }
            if let file = rbd.configuration { body.empty("config", [("file", file)]) }
            if let user = rbd.user {
                body.element("auth", [("username", user)]) { auth in
                    guard let file = rbd.keyFile else { return }
                    auth.empty(
                        "secret", [("xmlns", DomainDiskReader.namespace), ("file", file)])
                }
            }
        }
    }
}
