package import NBDServer

/// A disk of a domain, as its definition describes it.
package struct DomainDisk: Sendable, Hashable {
    /// Name of the disk within its domain, for example `vda`.
    package var target: String
    package var kind: SourceKind
    /// Absolute path of the source; nil for a drive without media.
    package var path: String?
    /// True for `<readonly/>` and for every cdrom.
    package var readOnly: Bool
    package var cacheMode: CacheMode
    package var discardMode: DiscardMode
    /// `disk`, `cdrom`, `floppy` or `lun`.
    package var device: String

    package init(
        target: String, kind: SourceKind = .file, path: String?, readOnly: Bool = false,
        cacheMode: CacheMode = .buffered, discardMode: DiscardMode = .unmap, device: String = "disk"
    ) {
        self.target = target
        self.kind = kind
        self.path = path
        self.readOnly = readOnly
        self.cacheMode = cacheMode
        self.discardMode = discardMode
        self.device = device
    }
}

/// What is known of a virtual machine: its name and its disks.
package struct DomainDefinition: Sendable, Hashable {
    /// Longest domain name in bytes.
    ///
    /// File systems allow no more in a file name.
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

    private init(name: String, uuid: String, disks: [DomainDisk], xml: String) {
        self.name = name
        self.uuid = uuid
        self.disks = disks
        self.xml = xml
    }

    /// Reads a `<domain>` document.
    ///
    /// Only the name, the uuid and the disks matter; the rest is kept. A missing uuid is made up:
    /// at random, or from the name when `hasStableUUID` says that the text will be read again in
    /// the next run.
    ///
    /// - Throws: 35 or 92 for XML that is none or not of this form, 27 for values that are wrong,
    ///   67 for disks that cannot be served.
    package static func parse(
        _ xml: String, hasStableUUID: Bool = false
    ) throws(ControlError) -> DomainDefinition {
        let root = try XMLDocument.parse(xml, schema: .domain)
        let name = root.child("name")?.text ?? ""
        var disks: [DomainDisk] = []
        for element in root.child("devices")?.all("disk") ?? [] {
            disks.append(try DomainDiskReader(element).read())
        }
        let given = root.child("uuid").map { $0.text }
        let uuid =
            given.map { UUIDText.normalized($0) }
            ?? (hasStableUUID ? UUIDText.derived(fromDomain: name) : UUIDText.random())
        guard let uuid else { throw .xmlError("malformed uuid '\(given ?? "")'") }
        let definition = DomainDefinition(
            name: name, uuid: uuid, disks: disks,
            xml: given == nil ? insertingUUID(uuid, into: xml) : xml)
        try definition.validate()
        return definition
    }

    /// Checks what holds for every definition, however it was made.
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
            if let path = disk.path, path.utf8.first != UInt8(ascii: "/") {
                throw .xmlError(
                    "source '\(path)' of disk '\(disk.target)' must be an absolute path")
            }
        }
    }

    /// Checks a domain name, which also names files and exports.
    ///
    /// - Throws: 27 for an empty or too long name, `.`, `..`, and for names with `/` or a control
    ///   character.
    package static func validateName(_ name: String) throws(ControlError) {
        let reason: String? =
            if name.isEmpty {
                "is empty"
            } else if name == "." || name == ".." {
                "is reserved"
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
                    ("type", "raw"), ("cache", disk.cacheMode == .none ? "none" : nil),
                    ("discard", disk.discardMode.rawValue),
                ])
            if let path = disk.path {
                body.empty("source", [(disk.kind == .file ? "file" : "dev", path)])
            }
            body.empty("target", [("dev", disk.target)])
            if disk.readOnly {
                body.empty("readonly")
            }
        }
    }
}
