import ServerInterface

/// Reads what an adapter is to open for one `<disk>` of a domain: format, chain, encryption, and
/// storage that is reached by a protocol of its own.
///
/// Only what the definition names is opened: what an image itself names as the one that it builds
/// on may have been written by anybody.
struct DomainImageReader {
    /// What was found.
    struct Found {
        var image: ImageConfiguration
        /// Where the image is, for people.
        var path: String
        var kind: SourceKind
    }

    /// Why the image cannot be opened, as the end of "disk 'vda' is not served: ".
    struct Fault: Error {
        let reason: String
    }

    /// Protocols of `<disk type='network'>` that adapters speak.
    static let protocols = ["rbd", "iscsi", "gluster"]
    private static let namespace = DomainDiskReader.namespace

    private let disk: XMLElement
    /// The element that says where the bytes are.
    private let source: XMLElement
    private let kind: SourceKind

    init(_ disk: XMLElement, _ source: XMLElement, _ kind: SourceKind) {
        self.disk = disk
        self.source = source
        self.kind = kind
    }

    /// Whether a disk needs an adapter.
    static func isNeeded(_ disk: XMLElement, _ source: XMLElement?) -> Bool {
        let format = disk.child("driver")?.attribute("type") ?? "raw"
        if disk.attribute("type") == "network" {
            return protocols.contains(source?.attribute("protocol") ?? "")
        }
        return ImageFormat(rawValue: format).map { $0 != .raw } ?? false
            || source?.child("encryption") != nil || disk.child("encryption") != nil
    }

    func read() throws(Fault) -> Found {
        let text = disk.child("driver")?.attribute("type") ?? "raw"
        guard let format = ImageFormat(rawValue: text) else {
            throw Fault(reason: "its driver type is '\(text)', which no adapter opens")
        }
        let place = try place(source, kind)
        var layers = [try layer(format, place, source)]
        var next = disk.child("backingStore")
        while let backing = next, !backing.children.isEmpty {
            guard layers.count < ImageConfiguration.layersMax else {
                throw Fault(
                    reason: "its chain has more than \(ImageConfiguration.layersMax) images")
            }
            layers.append(try backingLayer(backing))
            next = backing.child("backingStore")
        }
        return Found(
            image: ImageConfiguration(layers: layers), path: Self.text(place), kind: kind)
    }

    // MARK: Layers

    private func layer(
        _ format: ImageFormat, _ place: ImagePlace, _ source: XMLElement
    ) throws(Fault) -> ImageLayer {
        var layer = ImageLayer(format, place)
        for part in [source, source.child("dataStore")?.child("source")] {
            guard part?.child("slices") == nil, part?.attribute("fdgroup") == nil else {
                throw Fault(reason: "an image of it is a slice, or a descriptor that was passed")
            }
        }
        if let store = source.child("dataStore") {
            guard format == .qcow2, let data = store.child("source") else {
                throw Fault(reason: "<dataStore> needs a <source>, and a qcow2 image")
            }
            layer.dataPlace = try self.place(data, try kind(store))
        }
        if let encryption = own("encryption", of: source) {
            guard encryption.attribute("format") == "luks" else {
                throw Fault(
                    reason: "its encryption is '\(encryption.attribute("format") ?? "")', only"
                        + " 'luks' is opened")
            }
            layer.passphraseFile = try secretFile(encryption, of: "<encryption>", "passphrase")
            if format == .raw { layer.format = .luks }
        } else if format == .luks {
            throw Fault(
                reason: "it is encrypted: <source> needs <encryption format='luks'> with a file"
                    + " that has its passphrase")
        }
        return layer
    }

    private func backingLayer(_ backing: XMLElement) throws(Fault) -> ImageLayer {
        let text = backing.child("format")?.attribute("type") ?? ""
        guard let format = ImageFormat(rawValue: text) else {
            throw Fault(
                reason: "<backingStore> needs <format type='…'/> with a format that an adapter"
                    + " opens, it has '\(text)'")
        }
        guard let source = backing.child("source") else {
            throw Fault(reason: "<backingStore> has no <source>")
        }
        return try layer(format, try place(source, try kind(backing)), source)
    }

    private func kind(_ element: XMLElement) throws(Fault) -> SourceKind {
        let type = element.attribute("type") ?? "file"
        guard let kind = SourceKind(rawValue: type) else {
            throw Fault(
                reason: "<\(element.name) type='\(type)'> is not opened, only 'file', 'block' and"
                    + " 'network' are")
        }
        return kind
    }

    /// An element of a source; that of the disk's own source may stand beside it, as libvirt has it
    /// from long ago.
    private func own(_ name: String, of source: XMLElement) -> XMLElement? {
        source.child(name) ?? (source == self.source ? disk.child(name) : nil)
    }

    /// The file of a secret: an element of this project's own.
    private func secretFile(
        _ element: XMLElement, of name: String, _ what: String
    ) throws(Fault) -> String {
        guard let file = ownSecret(element) else {
            throw Fault(
                reason: "its \(what) is not known: \(name) needs"
                    + " <secret xmlns='\(Self.namespace)' file='PATH'/>")
        }
        guard file.utf8.first == UInt8(ascii: "/") else {
            throw Fault(reason: "the file of its \(what), '\(file)', needs an absolute path")
        }
        return file
    }

    private func ownSecret(_ element: XMLElement) -> String? {
        element.children.first { $0.name == "secret" && $0.namespace == Self.namespace }?
            .attribute("file")
    }

    // MARK: Places

    private func place(_ source: XMLElement, _ kind: SourceKind) throws(Fault) -> ImagePlace {
        switch kind {
        case .file: .file(path: try path(source, "file"))
        case .block: .block(path: try path(source, "dev"))
        case .network: try networkPlace(source)
        }
    }

    private func path(_ source: XMLElement, _ attribute: String) throws(Fault) -> String {
        guard let path = source.attribute(attribute), path.utf8.first == UInt8(ascii: "/") else {
            throw Fault(
                reason: "source '\(source.attribute(attribute) ?? "")' must be an absolute path")
        }
        return path
    }

    private func networkPlace(_ source: XMLElement) throws(Fault) -> ImagePlace {
        let name = source.attribute("name") ?? ""
        switch source.attribute("protocol") ?? "" {
        case "rbd": return .rbd(try rbd(source, name))
        case "iscsi": return .iscsi(try iscsi(source, name))
        case "gluster":
            let hosts = try hosts(source, port: 24_007)
            let parts = name.split(separator: "/", maxSplits: 1)
            guard parts.count == 2, !hosts.isEmpty else {
                throw Fault(reason: "its Gluster source needs name='VOLUME/PATH' and a <host>")
            }
            return .gluster(
                GlusterFile(hosts: hosts, volume: String(parts[0]), path: String(parts[1])))
        case let other:
            throw Fault(reason: "its protocol '\(other)' is not spoken by an adapter")
        }
    }

    private func hosts(_ source: XMLElement, port: UInt16) throws(Fault) -> [StorageHost] {
        var hosts: [StorageHost] = []
        for host in source.all("host") {
            let text = host.attribute("port") ?? String(port)
            guard host.attribute("transport") ?? "tcp" == "tcp", let name = host.attribute("name"),
                let port = UInt16(text), port > 0
            else {
                throw Fault(reason: "its <host> needs name='HOST', and port 1 to 65535 by TCP")
            }
            hosts.append(StorageHost(name: name, port: port))
        }
        return hosts
    }

    private func rbd(_ source: XMLElement, _ name: String) throws(Fault) -> RBDImage {
        guard var rbd = RBDImage(name: name) else {
            throw Fault(
                reason: "its RBD source '\(name)' must be name='POOL/IMAGE' or"
                    + " 'POOL/NAMESPACE/IMAGE'")
        }
        rbd.hosts = try hosts(source, port: 6_789)
        rbd.snapshot = source.child("snapshot")?.attribute("name")
        rbd.configuration = source.child("config")?.attribute("file")
        if let auth = own("auth", of: source) {
            rbd.user = auth.attribute("username")
            rbd.keyFile = ownSecret(auth)
        }
        return rbd
    }

    private func iscsi(_ source: XMLElement, _ name: String) throws(Fault) -> ISCSIUnit {
        let hosts = try hosts(source, port: 3_260)
        guard hosts.count == 1, let slash = name.lastIndex(of: "/"),
            let unit = UInt16(name[name.index(after: slash)...])
        else {
            throw Fault(reason: "its iSCSI source needs name='TARGET/LUN' and one <host>")
        }
        var found = ISCSIUnit(portal: hosts[0], target: String(name[..<slash]), unit: unit)
        if let auth = own("auth", of: source) {
            found.user = auth.attribute("username")
            found.passwordFile = try secretFile(auth, of: "<auth>", "password")
        }
        return found
    }

    /// A place for people; another one for another image.
    private static func text(_ place: ImagePlace) -> String {
        switch place {
        case .file(let path), .block(let path): path
        case .rbd(let rbd):
            "rbd:" + rbd.name + (rbd.snapshot.map { "@" + $0 } ?? "")
        case .iscsi(let unit):
            "iscsi://\(unit.portal.name):\(unit.portal.port)/\(unit.target)/\(unit.unit)"
        case .gluster(let file):
            "gluster://\(file.hosts.map(\.name).joined(separator: ","))/\(file.volume)/\(file.path)"
        }
    }
}
