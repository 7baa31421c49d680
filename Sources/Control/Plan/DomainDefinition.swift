package import ServerInterface

/// A disk of a domain, as its definition describes it.
package struct DomainDisk: Sendable, Hashable {
    /// Name of the disk within its domain, for example `vda`.
    package var target: String
    package var kind: SourceKind
    /// Nobody has said what kind it is: whatever is there when it is opened.
    ///
    /// Until then `kind` is what was there when somebody looked, a file if nothing was.
    package var isKindAssumed = false
    /// Absolute path of the source, an upstream's URI, or a name for storage that an adapter
    /// reaches; nil for a drive without media.
    package var path: String?
    /// True for `<readonly/>` and for every cdrom.
    package var readOnly: Bool
    package var cacheMode: CacheMode
    package var discardMode: DiscardMode
    /// `disk`, `cdrom`, `floppy` or `lun`.
    package var device: String
    /// Present on a disk that cannot be served; the rest of its domain is.
    package var unserved: Unserved?
    /// Absolute path of the socket by which the machine has the disk with vhost-user; nil: the
    /// server's choice, or none.
    package var vhostSocket: String?
    /// Requests wait so long for an upstream that has gone, in seconds; nil: as the server is set.
    package var patienceSeconds: Int?
    /// Present when an adapter opens it.
    package var image: ImageConfiguration?
    /// `startupPolicy='optional'`: a source that cannot be opened refuses no definition.
    package var isOptional: Bool

    /// A disk that is known and not served.
    package struct Unserved: Sendable, Hashable {
        /// The disk's type as written, for example `network`.
        package var type: String
        /// What lists show in place of a source.
        package var source: String?
        /// Why, as the end of "disk 'vda' is not served: ".
        package var reason: String

        package init(type: String, source: String?, reason: String) {
            self.type = type
            self.source = source
            self.reason = reason
        }
    }

    /// Whether there is something to serve, and it can be.
    package var isServable: Bool { path != nil && unserved == nil }

    /// Whether both would be served in the same way.
    func isServed(like other: DomainDisk) -> Bool {
        kind == other.kind && path == other.path && readOnly == other.readOnly
            && cacheMode == other.cacheMode && discardMode == other.discardMode
            && unserved == other.unserved && vhostSocket == other.vhostSocket
            && patienceSeconds == other.patienceSeconds && image == other.image
    }

    package init(
        target: String, kind: SourceKind = .file, path: String?, readOnly: Bool = false,
        cacheMode: CacheMode = .buffered, discardMode: DiscardMode = .unmap,
        device: String = "disk", unserved: Unserved? = nil, isOptional: Bool = false,
        vhostSocket: String? = nil, patienceSeconds: Int? = nil,
        image: ImageConfiguration? = nil
    ) {
        self.image = image
        self.patienceSeconds = patienceSeconds
        self.vhostSocket = vhostSocket
        self.unserved = unserved
        self.isOptional = isOptional
        self.target = target
        self.kind = kind
        self.path = path
        self.readOnly = readOnly
        self.cacheMode = cacheMode
        self.discardMode = discardMode
        self.device = device
    }
}

/// A virtual machine as defined: its name and its disks.
package struct DomainDefinition: Sendable, Hashable {
    /// Longest domain name in bytes: what a file name may have, so at least what libvirt takes.
    package static let nameBytesMax = 255
    /// Most disks of one domain.
    ///
    /// A job installs a ledger and an export for each.
    package static let disksMax = 256

    package let name: String
    /// Lower case; generated when the definition has none.
    package let uuid: String
    /// Disks in the order of the definition; targets are unique.
    package let disks: [DomainDisk]
    /// What `dumpxml` prints: the text given, with `<uuid>` added when it was missing.
    package let xml: String

    /// Makes a definition without XML, for disks named on a command line.
    ///
    /// The uuid is derived from the name, so that the next run finds the disks' checkpoints again.
    /// Checks nothing: call `validate()`.
    package init(name: String, disks: [DomainDisk]) {
        self.name = name
        self.disks = disks
        uuid = UUIDText.derived(fromDomain: name)
        xml = Self.describe(name: name, uuid: uuid, disks: disks)
    }

    init(name: String, uuid: String, disks: [DomainDisk], xml: String) {
        self.name = name
        self.uuid = uuid
        self.disks = disks
        self.xml = xml
    }

    /// Reads a `<domain>` document.
    ///
    /// Only the name, the uuid and the disks matter; the rest is kept. `docs/domain-xml.md` lists
    /// what is served, what is not, and what is refused. A missing uuid is that of the domain which
    /// `knownUUID` finds by the name; else it is made up: at random, or from the name when
    /// `hasStableUUID` says that the text will be read again in the next run.
    ///
    /// - Throws: 35 for malformed XML, 92 where it does not match the schema, 27 for wrong values,
    ///   67 for what a disk asks for and would not get.
    package static func parse(
        _ xml: String, hasStableUUID: Bool = false,
        knownUUID: (String) -> String? = { _ in nil }
    ) throws(ControlError) -> DomainDefinition {
        try read(xml, isKept: false) { name in
            knownUUID(name)
                ?? (hasStableUUID ? UUIDText.derived(fromDomain: name) : UUIDText.random())
        }.definition
    }

    /// Reads a document that was accepted before, perhaps by an earlier version: what would be
    /// refused today is a warning, and the disk is served as it was.
    package static func kept(
        _ xml: String
    ) throws(ControlError) -> (definition: DomainDefinition, warnings: [String]) {
        try read(xml, isKept: true) { UUIDText.derived(fromDomain: $0) }
    }

    private static func read(
        _ xml: String, isKept: Bool, missingUUID: (String) -> String
    ) throws(ControlError) -> (definition: DomainDefinition, warnings: [String]) {
        let root = try XMLDocument.parse(xml, schema: .domain)
        let name = root.child("name")?.text ?? ""
        var disks: [DomainDisk] = []
        var warnings: [String] = []
        for element in root.child("devices")?.all("disk") ?? [] {
            var reader = DomainDiskReader(element, isKept: isKept)
            disks.append(try reader.read())
            warnings += reader.warnings
        }
        let given = root.child("uuid").map { $0.text }
        let uuid = given.map { UUIDText.normalized($0) } ?? missingUUID(name)
        guard let uuid else { throw .xmlError("malformed uuid '\(given ?? "")'") }
        let definition = DomainDefinition(
            name: name, uuid: uuid, disks: disks,
            xml: given == nil ? insertingUUID(uuid, into: xml) : xml)
        try definition.validate()
        return (definition, warnings)
    }

    /// Checks what every definition must satisfy, however it was made.
    ///
    /// - Throws: 27 for a name, a target or a path that cannot be used, 67 for a target used twice
    ///   and for too many disks.
    package func validate() throws(ControlError) {
        try Self.validateName(name)
        guard disks.count <= Self.disksMax else {
            throw .unsupportedConfiguration(
                "domain '\(name)' has \(disks.count) disks, no more than \(Self.disksMax) "
                    + "are supported")
        }
        var seen: Set<String> = []
        for disk in disks {
            guard TargetName.isValid(disk.target) else {
                throw .xmlError(
                    "disk target '\(disk.target)' is not a name such as 'vda', 'sdb' or 'nvme0n1'")
            }
            guard seen.insert(disk.target).inserted else {
                throw .diskUnsupported(disk.target, detail: "target is used by two disks")
            }
            for path in [disk.kind == .network ? nil : disk.path, disk.vhostSocket].compactMap({
                $0
            })
            where path.utf8.first != UInt8(ascii: "/") {
                throw .xmlError(
                    "source '\(path)' of disk '\(disk.target)' must be an absolute path")
            }
        }
    }

    /// Checks a domain name, which is also a part of export names and of event lines.
    ///
    /// - Throws: 27 for an empty, blank or too long name, and for one with `/` (libvirt's rule as
    ///   well) or a control character.
    package static func validateName(_ name: String) throws(ControlError) {
        let reason: String? =
            if name.isEmpty {
                "is empty"
            } else if name.unicodeScalars.allSatisfy(\.properties.isWhitespace) {
                "is blank"
            } else if name.utf8.count > nameBytesMax {
                "is longer than \(nameBytesMax) bytes"
            } else if name.unicodeScalars.contains("/") {
                "contains '/'"
            } else if name.unicodeScalars.contains(where: {
                $0.properties.generalCategory == .control
            }) {
                "contains a control character"
            } else {
                nil
            }
        if let reason {
            throw .xmlError("domain name '\(name)' \(reason)")
        }
    }

    /// Returns the name of a disk's live export, for example `vm1/vda`.
    package func liveExportName(target: String) -> String {
        "\(name)/\(target)"
    }

    /// Adds `<uuid>` behind the start tag of the root element of a document that parses.
    private static func insertingUUID(_ uuid: String, into xml: String) -> String {
        guard let end = XMLText.endOfRootStartTag(xml) else { return xml }
        return xml[..<end] + "\n  <uuid>\(uuid)</uuid>" + xml[end...]
    }

    private static func describe(name: String, uuid: String, disks: [DomainDisk]) -> String {
        var writer = XMLWriter()
        writer.element("domain", [("type", "none")]) { domain in
            domain.leaf("name", text: name)
            domain.leaf("uuid", text: uuid)
            domain.element("devices") { devices in
                for disk in disks {
                    describe(disk, to: &devices)
                }
            }
        }
        return writer.text
    }

    private static func describe(_ disk: DomainDisk, to writer: inout XMLWriter) {
        writer.element("disk", [("type", disk.kind.rawValue), ("device", disk.device)]) { body in
            body.empty(
                "driver",
                [
                    ("type", disk.image?.layers.first?.format.rawValue ?? "raw"),
                    ("cache", disk.cacheMode == .none ? "none" : nil),
                    ("discard", disk.discardMode.rawValue),
                ])
            if let path = disk.path, disk.kind != .network {
                body.empty("source", [(disk.kind == .file ? "file" : "dev", path)])
            } else if case .rbd(let rbd) = disk.image?.layers.first?.place {
                body.empty("source", [("protocol", "rbd"), ("name", rbd.name)])
            }
            body.empty("target", [("dev", disk.target)])
            if disk.readOnly {
                body.empty("readonly")
            }
        }
    }
}
