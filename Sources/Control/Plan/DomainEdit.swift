package import ServerInterface

/// A `<disk>` on its own, as virsh's device commands take it.
struct DiskElement {
    /// As it was written, without anything around it.
    let text: String
    let element: XMLElement
    let disk: DomainDisk
    var target: String { disk.target }
    /// libvirt's `startupPolicy`, as written.
    var startupPolicy: String? { element.child("source")?.attribute("startupPolicy") }

    /// - Throws: 35 or 92 for what is no XML or not one `<disk>`.
    init(_ xml: String) throws(ControlError) {
        guard let text = XMLText.rootElement(xml) else {
            _ = try XMLDocument.parse(xml, schema: .domain)
            throw .xmlError("the text is not a <disk> element")
        }
        // With all that comes behind it, which would otherwise be left out without a word.
        let start = xml.firstRange(of: text)?.lowerBound ?? xml.startIndex
        let root = try XMLDocument.parse(
            "<domain><name>disk</name><devices>" + xml[start...] + "</devices></domain>",
            schema: .domain)
        guard root.children.count == 2, let devices = root.child("devices"),
            devices.children.count == 1, let element = devices.all("disk").first
        else { throw .xmlError("the text is not one <disk> element") }
        self.text = text
        self.element = element
        var reader = DomainDiskReader(element)
        disk = try reader.read()
    }
}

/// Changes of one disk within a domain's text; the rest stays as its author wrote it.
extension DomainDefinition {
    /// The domain with one more disk, behind the others.
    package func addingDisk(_ xml: String) throws(ControlError) -> DomainDefinition {
        let added = try DiskElement(xml)
        guard !disks.contains(where: { $0.target == added.target }) else {
            throw .diskExists(added.target, domain: name)
        }
        let tags = XMLTags(self.xml)
        guard let root = tags.children(of: nil, named: "domain").first else { throw notEditable }
        let text: String
        if let devices = tags.children(of: root, named: "devices").first {
            let last = tags.children(of: devices, named: "disk").last
            text = insert(added.text, into: tags.elements[devices], behind: last, tags)
        } else {
            let block = "\n  <devices>\n    \(added.text)\n  </devices>\n"
            guard let end = endTag(of: tags.elements[root]) else { throw notEditable }
            text = self.xml[..<end] + block + self.xml[end...]
        }
        return try checked(text, disks + [added.disk])
    }

    /// The domain without the disk.
    package func removingDisk(_ target: String) throws(ControlError) -> DomainDefinition {
        let range = try range(of: target)
        var start = range.lowerBound
        // With the white space in front of it, so that no empty line stays.
        let scalars = xml.unicodeScalars
        while start > scalars.startIndex {
            let before = scalars.index(before: start)
            guard [" ", "\t", "\n", "\r"].contains(scalars[before]) else { break }
            start = before
            if scalars[before] == "\n" { break }
        }
        let text = xml[..<start] + xml[range.upperBound...]
        return try checked(String(text), disks.filter { $0.target != target })
    }

    /// The domain with another description of the disk of the same target.
    package func replacingDisk(_ xml: String) throws(ControlError) -> DomainDefinition {
        let new = try DiskElement(xml)
        let range = try range(of: new.target)
        let text = self.xml[..<range.lowerBound] + new.text + self.xml[range.upperBound...]
        return try checked(
            String(text), disks.map { $0.target == new.target ? new.disk : $0 })
    }

    /// The domain with another medium in a drive; nil empties it.
    ///
    /// - Throws: 67 for a disk that has no removable medium.
    package func changingMedium(
        of target: String, to path: String?, kind: SourceKind
    ) throws(ControlError) -> DomainDefinition {
        guard let disk = disks.first(where: { $0.target == target }) else {
            throw .unknownDisk(target)
        }
        guard disk.device == "cdrom" || disk.device == "floppy" else {
            throw .diskUnsupported(
                target,
                detail: "it is a \(disk.device) without removable media: define the domain anew, "
                    + "or use update-device")
        }
        let old = try DiskElement(String(xml[try range(of: target)]))
        return try replacingDisk(try Self.description(of: old, path, kind, target: target))
    }

    /// The domain with a disk of the kind that its source has turned out to be.
    func settlingKind(
        of target: String, _ kind: SourceKind
    ) throws(ControlError) -> DomainDefinition {
        guard let path = disks.first(where: { $0.target == target })?.path else {
            throw .unknownDisk(target)
        }
        let old = try DiskElement(String(xml[try range(of: target)]))
        return try replacingDisk(try Self.description(of: old, path, kind, target: target))
    }

    /// The disk's text with another source.
    private static func description(
        of old: DiskElement, _ path: String?, _ kind: SourceKind, target: String
    ) throws(ControlError) -> String {
        guard !old.element.attributes.contains(where: \.isForeign) else {
            throw .diskUnsupported(target, detail: "its attributes have namespaces, define it anew")
        }
        let tags = XMLTags(old.text)
        guard let root = tags.elements.first, !root.isEmpty else {
            throw .internalError("the description of disk '\(target)' cannot be read")
        }
        let source = Self.source(path, kind, policy: old.startupPolicy)
        let others = old.element.attributes.filter { $0.name != "type" }.map {
            " \($0.name)='\(XMLWriter.escaped($0.value, inAttribute: true))'"
        }
        let start = root.startTag.upperBound
        let present = tags.children(of: 0, named: "source").first.map { tags.elements[$0].range }
        let gap = present ?? start..<start
        return "<disk type='\(kind.rawValue)'\(others.joined())>" + old.text[start..<gap.lowerBound]
            + source + old.text[gap.upperBound...]
    }

    // What is to be done without a medium goes with the drive, not with the medium.
    private static func source(_ path: String?, _ kind: SourceKind, policy: String?) -> String {
        let attributes = [(kind == .file ? "file" : "dev", path), ("startupPolicy", policy)]
            .compactMap { name, value in
                value.map { " \(name)='\(XMLWriter.escaped($0, inAttribute: true))'" }
            }
        return attributes.isEmpty ? "" : "<source\(attributes.joined())/>"
    }

    private func range(of target: String) throws(ControlError) -> Range<String.Index> {
        let tags = XMLTags(xml)
        guard let place = disks.firstIndex(where: { $0.target == target }) else {
            throw .unknownDisk(target)
        }
        let devices = tags.children(of: nil, named: "domain").first.flatMap {
            tags.children(of: $0, named: "devices").first
        }
        let found = devices.map { tags.children(of: $0, named: "disk") } ?? []
        guard found.count == disks.count else { throw notEditable }
        return tags.elements[found[place]].range
    }

    private func insert(
        _ added: String, into devices: XMLTags.Element, behind last: Int?, _ tags: XMLTags
    ) -> String {
        if let last {
            let end = tags.elements[last].range.upperBound
            return xml[..<end] + "\n    " + added + xml[end...]
        }
        guard devices.isEmpty else {
            let end = devices.startTag.upperBound
            return xml[..<end] + "\n    " + added + xml[end...]
        }
        var tag = String(xml[devices.startTag])
        if let slash = tag.lastIndex(of: "/") { tag.remove(at: slash) }
        return xml[..<devices.range.lowerBound] + "\(tag)\n    \(added)\n  </devices>"
            + xml[devices.range.upperBound...]
    }

    private func endTag(of element: XMLTags.Element) -> String.Index? {
        guard !element.isEmpty else { return nil }
        return xml[element.range].unicodeScalars.lastIndex(of: "<")
    }

    /// Reads the changed text and makes sure that it says what was meant: text is not structure.
    private func checked(
        _ text: String, _ expected: [DomainDisk]
    ) throws(ControlError) -> DomainDefinition {
        let changed = try DomainDefinition.kept(text).definition
        // The text does not say that nobody has said it.
        let said = expected.map { disk in
            var said = disk
            said.isKindAssumed = false
            return said
        }
        guard changed.name == name, changed.uuid == uuid, changed.disks == said else {
            throw notEditable
        }
        return DomainDefinition(name: name, uuid: uuid, disks: expected, xml: changed.xml)
    }

    private var notEditable: ControlError {
        .internalError(
            "the XML of domain '\(name)' cannot be edited in place: change it yourself and define "
                + "it anew")
    }
}
