/// Says what a `<domain>` that failed its schema got wrong.
enum DomainSchemaExplanation {
    /// Returns one sentence per mistake recognised.
    static func reasons(for root: XMLElement) -> [String] {
        guard root.name == "domain", root.namespace == nil else {
            return ["expected <domain> but the document is <\(root.name)>"]
        }
        var reasons: [String] = []
        if root.all("name").isEmpty { reasons.append("<domain> needs <name>") }
        for name in ["name", "uuid", "devices"] where root.all(name).count > 1 {
            reasons.append("\(FormCheck.place(root.all(name)[1])) may stand once in <domain>")
        }
        for name in ["name", "uuid"] {
            guard let child = root.child(name)?.children.first else { continue }
            reasons.append("\(FormCheck.place(child)) is not allowed in <\(name)>")
        }
        reasons += root.all("devices").flatMap { $0.all("disk") }.flatMap(diskReasons)
        return Array(reasons.prefix(XMLDocument.reportsMax))
    }

    private static func diskReasons(_ disk: XMLElement) -> [String] {
        var reasons: [String] = []
        let targets = disk.all("target")
        if targets.isEmpty {
            reasons.append("\(FormCheck.place(disk)) needs <target dev='NAME'/>, such as 'vda'")
        }
        for target in targets where target.attribute("dev") == nil {
            reasons.append("\(FormCheck.place(target)) needs dev='NAME', such as 'vda'")
        }
        for name in ["target", "source", "driver", "readonly"] where disk.all(name).count > 1 {
            reasons.append("\(FormCheck.place(disk.all(name)[1])) may stand once in <disk>")
        }
        return reasons
    }
}
