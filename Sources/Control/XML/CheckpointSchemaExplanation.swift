/// Says what a `<domaincheckpoint>` that failed its schema got wrong.
enum CheckpointSchemaExplanation {
    /// The rule for checkpoints' names, in words.
    static let nameRule =
        "letters of ASCII, digits, '_' and '-', and '.' where it is not the first"

    /// Returns one sentence per mistake recognised.
    static func reasons(for root: XMLElement) -> [String] {
        guard root.name == "domaincheckpoint", root.namespace == nil else {
            return ["expected <domaincheckpoint> but the document is <\(root.name)>"]
        }
        var reasons = FormCheck.attributes(of: root, allowed: [])
        reasons += FormCheck.children(
            of: root,
            allowed: ["name", "description", "creationTime", "parent", "disks", "domain"])
        reasons += FormCheck.text(in: root)
        reasons += nameReasons(root.child("name"))
        reasons += FormCheck.number(root.child("creationTime"))
        if let parent = root.child("parent") {
            reasons += FormCheck.children(of: parent, allowed: ["name"])
            reasons += nameReasons(parent.child("name"))
            if parent.all("name").isEmpty {
                reasons.append("\(FormCheck.place(parent)) needs <name>")
            }
        }
        if let list = root.child("disks") {
            reasons += FormCheck.children(of: list, allowed: [], repeatable: ["disk"])
            if list.all("disk").isEmpty {
                reasons.append(
                    "\(FormCheck.place(list)) must list at least one <disk name='TARGET'/>; "
                        + "leave it out to mean every disk")
            }
            reasons += list.all("disk").flatMap(diskReasons)
        }
        return Array(reasons.prefix(XMLDocument.reportsMax))
    }

    private static func nameReasons(_ element: XMLElement?) -> [String] {
        guard let element, !isName(element.text) else { return [] }
        return [
            "\(FormCheck.place(element)): '\(element.text)' is no name of a checkpoint: it may hold "
                + nameRule
        ]
    }

    // As the schema's pattern.
    private static func isName(_ text: String) -> Bool {
        guard !text.isEmpty, !text.hasPrefix(".") else { return false }
        return text.utf8.allSatisfy { byte in
            FormCheck.isDigit(byte) || "_-.".utf8.contains(byte)
                || (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte)
        }
    }

    private static func diskReasons(_ disk: XMLElement) -> [String] {
        guard let name = disk.attribute("name") else {
            return ["\(FormCheck.place(disk)) needs name='TARGET'"]
        }
        var reasons = FormCheck.attributes(
            of: disk, allowed: ["name", "checkpoint", "bitmap", "size"])
        reasons += FormCheck.children(of: disk, allowed: [])
        reasons += FormCheck.value(of: "checkpoint", in: disk, allowed: ["bitmap", "no"])
        if !TargetName.isValid(name), !(name.hasPrefix("/") && name.utf8.count > 1) {
            reasons.append(
                "\(FormCheck.place(disk)): name='\(name)' must be a target such as 'vda', or the "
                    + "absolute path of a source")
        }
        if disk.attribute("checkpoint") == "no" {
            for other in ["bitmap", "size"] where disk.attribute(other) != nil {
                reasons.append("\(FormCheck.place(disk)): checkpoint='no' excludes \(other)=")
            }
        }
        if let size = disk.attribute("size"),
            size.isEmpty || !size.utf8.allSatisfy(FormCheck.isDigit)
        {
            reasons.append("\(FormCheck.place(disk)): size='\(size)' is not a number")
        }
        return reasons
    }
}
