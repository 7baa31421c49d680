/// The domain XML that backup tools are shown: a machine's own, in which the disks that this server
/// tracks are described as qcow2 images.
///
/// Tools take incremental backups of `<disk type='file'>` with `<driver type='qcow2'>` only. The
/// files named are the disks' stand-ins (`StandInImage`), so what the XML says of them is true.
/// docs/domain-xml.md is this file for users.
package struct BackupToolXML {
    /// Which disks to describe differently, and how.
    package struct Options: Sendable, Hashable {
        /// Paths of stand-ins, by target.
        package var standIns: [String: String]
        /// Names of live exports, by target, when only disks that the machine reaches through those
        /// are ours; nil when the XML is the server's own.
        package var liveExports: [String: String]?
        /// Where those are reached: an export of the same name may be another server's.
        package var places: LivePlaces
        /// Passwords stay in.
        package var showsSecrets: Bool

        package init(
            standIns: [String: String], liveExports: [String: String]? = nil,
            places: LivePlaces = LivePlaces([]), showsSecrets: Bool = false
        ) {
            self.places = places
            self.standIns = standIns
            self.liveExports = liveExports
            self.showsSecrets = showsSecrets
        }
    }

    private let xml: String
    private let options: Options
    private let tags: XMLTags
    /// One for each of `tags.elements`.
    private let elements: [XMLElement]
    private var edits: [(range: Range<String.Index>, text: String)] = []

    private init(_ xml: String, _ options: Options) throws(ControlError) {
        self.xml = xml
        self.options = options
        tags = XMLTags(xml)
        let root = try XMLDocument.parse(xml, schema: .machine)
        elements = Self.inOrder(root)
        guard elements.count == tags.elements.count else { throw Self.notEditable }
    }

    /// Describes the machine; what has nothing to do with its disks stays as it is written.
    ///
    /// - Throws: 35 or 92 for XML that is not valid, 1 for XML that cannot be edited in place.
    package static func text(
        of xml: String, _ options: Options
    ) throws(ControlError) -> String {
        var editor = try BackupToolXML(xml, options)
        var described: Set<String> = []
        for index in editor.devices("disk") {
            let target = editor.elements[index].child("target")?.attribute("dev") ?? ""
            if let path = options.standIns[target], editor.isOurs(index, target: target) {
                editor.describe(index, as: path)
                described.insert(target)
            } else {
                editor.complete(index)
            }
        }
        if !options.showsSecrets { editor.hideSecrets() }
        let text = editor.edited()
        try check(text, described, options.standIns)
        return text
    }

    /// Targets of disks that a machine has, by its XML, from elsewhere than the live exports of the
    /// same names; in the order of the XML.
    ///
    /// - Throws: as `text(of:_:)`.
    package static func foreignDisks(
        in xml: String, liveExports: [String: String], places: LivePlaces
    ) throws(ControlError) -> [String] {
        let machine = try BackupToolXML(
            xml, Options(standIns: [:], liveExports: liveExports, places: places))
        return machine.devices("disk").compactMap { index in
            let target = machine.elements[index].child("target")?.attribute("dev") ?? ""
            guard liveExports[target] != nil, !machine.isOurs(index, target: target) else {
                return nil
            }
            return target
        }
    }

    /// A `<disk>` as a client was shown it, described as the machine has it: its type, device,
    /// format and source are those of the machine's own disk of that target, and what else it says
    /// stays.
    ///
    /// `options` say which of the machine's disks are ours. Nil when it has none of that target
    /// that is.
    ///
    /// - Throws: as `text(of:_:)`.
    package static func machineDisk(
        _ disk: String, of machineXML: String, _ options: Options
    ) throws(ControlError) -> String? {
        let (head, tail) = ("<domain><name>disk</name><devices>", "</devices></domain>")
        guard let text = XMLText.rootElement(disk) else { return nil }
        var editor = try BackupToolXML(head + text + tail, Options(standIns: [:]))
        let machine = try BackupToolXML(machineXML, options)
        guard let index = editor.devices("disk").first, editor.devices("disk").count == 1,
            let target = editor.elements[index].child("target")?.attribute("dev"),
            let own = machine.devices("disk").first(where: {
                machine.elements[$0].child("target")?.attribute("dev") == target
            }), machine.isOurs(own, target: target)
        else { return nil }
        editor.takeBack(index, machine, own)
        let restored = editor.edited().dropFirst(head.count).dropLast(tail.count)
        _ = try XMLDocument.parse(head + restored + tail, schema: .machine)
        return String(restored)
    }

    /// The XML without the passwords in it.
    ///
    /// - Throws: as `text(of:_:)`.
    package static func withoutSecrets(_ xml: String) throws(ControlError) -> String {
        var editor = try BackupToolXML(xml, Options(standIns: [:]))
        editor.hideSecrets()
        return editor.edited()
    }

    private static func inOrder(_ root: XMLElement) -> [XMLElement] {
        var found: [XMLElement] = []
        var open = [root]
        while let next = open.popLast() {
            found.append(next)
            open += next.children.reversed()
        }
        return found
    }

    private func devices(_ name: String) -> [Int] {
        tags.children(of: 0, named: "devices").flatMap { tags.children(of: $0, named: name) }
    }

    private func isOurs(_ disk: Int, target: String) -> Bool {
        guard let exports = options.liveExports else { return true }
        guard elements[disk].attribute("type") == "network",
            let source = elements[disk].child("source"), source.attribute("protocol") == "nbd"
        else { return false }
        guard let name = source.attribute("name"), name == exports[target] else { return false }
        return options.places.include(source)
    }

    // MARK: Edits

    private mutating func describe(_ disk: Int, as path: String) {
        // Pass-through of SCSI commands is for devices, and goes with the device.
        let device = elements[disk].attribute("device").map { $0 == "lun" ? "disk" : $0 }
        replaceStartTag(
            of: disk, setting: [("type", "file"), ("device", device ?? "disk")],
            dropping: ["rawio", "sgio"])
        describeDriver(of: disk, format: "qcow2")
        let source = "<source file='\(XMLWriter.escaped(path, inAttribute: true))'/>"
        let sources = tags.children(of: disk, named: "source")
        for (number, index) in sources.enumerated() {
            edits.append((tags.elements[index].range, number == 0 ? source : ""))
        }
        if sources.isEmpty { insert(source, into: disk) }
        for name in ["backingStore", "mirror", "auth", "encryption"] {
            for index in tags.children(of: disk, named: name) { remove(index) }
        }
    }

    /// The opposite of `describe`, by what the machine's own XML says of its disk.
    private mutating func takeBack(_ disk: Int, _ machine: BackupToolXML, _ own: Int) {
        let original = machine.elements[own]
        let kept = ["type", "device"].compactMap { name in
            original.attribute(name).map { (name, $0) }
        }
        replaceStartTag(of: disk, setting: kept, dropping: [])
        let format = original.child("driver")?.attribute("type") ?? "raw"
        describeDriver(of: disk, format: format)
        let source = machine.tags.children(of: own, named: "source").first.map {
            String(machine.xml[machine.tags.elements[$0].range])
        }
        for (number, index) in tags.children(of: disk, named: "source").enumerated() {
            edits.append((tags.elements[index].range, number == 0 ? source ?? "" : ""))
        }
    }

    /// Writes out defaults: tools expect them without checking that they are there.
    private mutating func complete(_ disk: Int) {
        let type = elements[disk].attribute("type")
        if type == nil || elements[disk].attribute("device") == nil {
            let device = elements[disk].attribute("device")
            replaceStartTag(
                of: disk, setting: [("type", type ?? "file"), ("device", device ?? "disk")],
                dropping: [])
        }
        describeDriver(of: disk, format: nil)
        if type ?? "file" == "file", tags.children(of: disk, named: "source").isEmpty {
            insert("<source/>", into: disk)
        }
    }

    /// Nil keeps a format that is given; where none is, it is raw.
    private mutating func describeDriver(of disk: Int, format: String?) {
        let drivers = tags.children(of: disk, named: "driver")
        guard let driver = drivers.first else {
            insert("<driver name='qemu' type='\(format ?? "raw")'/>", into: disk)
            return
        }
        guard format != nil || elements[driver].attribute("type") == nil else { return }
        let name = elements[driver].attribute("name") ?? "qemu"
        replaceStartTag(
            of: driver, setting: [("name", name), ("type", format ?? "raw")], dropping: [])
    }

    private mutating func hideSecrets() {
        for index in devices("graphics") where elements[index].attribute("passwd") != nil {
            replaceStartTag(of: index, setting: [], dropping: ["passwd", "passwdValidTo"])
        }
    }

    /// Attributes set come first; those of other namespaces have no meaning here and go.
    private mutating func replaceStartTag(
        of index: Int, setting: [(String, String)], dropping: Set<String>
    ) {
        let set = Set(setting.map(\.0)).union(dropping)
        let kept = elements[index].attributes.filter { !$0.isForeign && !set.contains($0.name) }
            .map { ($0.name, $0.value) }
        let list = (setting + kept).map {
            " \($0)='\(XMLWriter.escaped($1, inAttribute: true))'"
        }
        let element = tags.elements[index]
        let end = element.isEmpty ? "/>" : ">"
        edits.append((element.startTag, "<\(element.name)\(list.joined())\(end)"))
    }

    /// Puts an element in front of the others, on a line of its own where they have theirs.
    private mutating func insert(_ text: String, into index: Int) {
        let start = tags.elements[index].startTag.upperBound
        let gap = xml[start...].unicodeScalars.prefix { [" ", "\t", "\n", "\r"].contains($0) }
        edits.append((start..<start, String(gap) + text))
    }

    /// With the white space in front of it, so that no empty line stays.
    private mutating func remove(_ index: Int) {
        let range = tags.elements[index].range
        let gap = xml[..<range.lowerBound].unicodeScalars.reversed().prefix {
            [" ", "\t", "\n", "\r"].contains($0)
        }
        let start = xml.unicodeScalars.index(range.lowerBound, offsetBy: -gap.count)
        edits.append((start..<range.upperBound, ""))
    }

    private func edited() -> String {
        var text = ""
        var place = xml.startIndex
        // An insertion comes before a replacement that starts at the same place.
        let ordered = edits.enumerated().sorted {
            ($0.element.range.lowerBound, $0.element.range.upperBound, $0.offset)
                < ($1.element.range.lowerBound, $1.element.range.upperBound, $1.offset)
        }
        for (_, edit) in ordered {
            text += xml[place..<edit.range.lowerBound]
            text += edit.text
            place = edit.range.upperBound
        }
        return text + xml[place...]
    }

    /// Text is not structure: the result is read again, and must say what was meant.
    private static func check(
        _ text: String, _ described: Set<String>, _ standIns: [String: String]
    ) throws(ControlError) {
        let root = try XMLDocument.parse(text, schema: .machine)
        var found: Set<String> = []
        for disk in root.child("devices")?.all("disk") ?? [] {
            let target = disk.child("target")?.attribute("dev") ?? ""
            guard described.contains(target) else { continue }
            guard disk.attribute("type") == "file",
                disk.child("driver")?.attribute("type") == "qcow2",
                disk.child("source")?.attribute("file") == standIns[target]
            else { throw notEditable }
            found.insert(target)
        }
        guard found == described else { throw notEditable }
    }

    private static var notEditable: ControlError {
        .internalError("the XML of the domain cannot be edited in place: define it anew")
    }
}
