/// Says what a `<domainbackup>` that failed its schema got wrong.
///
/// Never decides whether a document is valid: the schema does. It only finds words for it, and
/// none for mistakes it does not know.
enum BackupSchemaExplanation {
    private static let diskAttributes: Set<String> = [
        "name", "backup", "backupmode", "incremental", "exportname", "exportbitmap", "type",
    ]

    /// Returns one sentence per mistake recognised.
    static func reasons(for root: XMLElement) -> [String] {
        guard root.name == "domainbackup", root.namespace == nil else {
            return ["expected <domainbackup> but the document is <\(root.name)>"]
        }
        var reasons: [String] = []
        for attribute in root.attributes where attribute.name != "mode" {
            reasons.append("attribute '\(attribute.name)' is not allowed on <domainbackup>")
        }
        let mode = root.attribute("mode") ?? "push"
        if !["push", "pull"].contains(mode) {
            reasons.append("unknown backup mode '\(mode)', use 'pull' or 'push'")
        }
        for child in root.children where !["incremental", "server", "disks"].contains(child.name) {
            reasons.append("line \(child.line): <\(child.name)> is not allowed here")
        }
        if root.all("incremental").count > 1 {
            reasons.append("<incremental> may stand once")
        }
        let servers = root.all("server")
        if mode == "push", !servers.isEmpty {
            reasons.append("use of <server> requires pull mode backup")
        }
        if mode == "pull", servers.count != 1 {
            reasons.append("pull mode needs exactly one <server>, found \(servers.count)")
        }
        reasons += servers.flatMap(serverReasons)
        let lists = root.all("disks")
        if lists.count > 1 || lists.contains(where: { $0.all("disk").isEmpty }) {
            reasons.append("<disks> may stand once and must list at least one <disk>")
        }
        reasons += lists.flatMap { $0.all("disk") }.flatMap { diskReasons($0, mode: mode) }
        return Array(reasons.prefix(XMLDocument.reportsMax))
    }

    private static func serverReasons(_ server: XMLElement) -> [String] {
        let place = "line \(server.line): <server>"
        let transport = server.attribute("transport") ?? "tcp"
        var reasons: [String] = []
        switch transport {
        case "unix":
            if let path = server.attribute("socket") {
                if !path.hasPrefix("/") {
                    reasons.append("backup socket path '\(path)' must be absolute")
                }
            } else {
                reasons.append("\(place) with transport='unix' needs socket='/path'")
            }
        case "tcp", "rdma":
            if server.attribute("name") == nil {
                reasons.append("\(place) with transport='\(transport)' needs name='HOST'")
            }
            if let port = server.attribute("port"), UInt64(port) == nil {
                reasons.append("\(place) has a port '\(port)' that is not a number")
            }
        case "fd":
            if server.attribute("fdgroup") == nil {
                reasons.append("\(place) with transport='fd' needs fdgroup='NAME'")
            }
        default:
            reasons.append("\(place) has an unknown transport '\(transport)'")
        }
        return reasons
    }

    private static func diskReasons(_ disk: XMLElement, mode: String) -> [String] {
        guard let name = disk.attribute("name") else {
            return ["line \(disk.line): missing name from disk backup element"]
        }
        let place = "line \(disk.line): disk '\(name)'"
        var reasons: [String] = []
        if !TargetName.isValid(name) {
            reasons.append("\(place): the name must be a target such as 'vda'")
        }
        for attribute in disk.attributes where !diskAttributes.contains(attribute.name) {
            reasons.append("\(place): attribute '\(attribute.name)' is not allowed on input")
        }
        let type = disk.attribute("type")
        if let type, !["file", "block"].contains(type) {
            reasons.append("\(place): unsupported disk backup type '\(type)'")
        }
        if disk.attribute("backupmode") == "full", disk.attribute("incremental") != nil {
            reasons.append("\(place): backupmode='full' excludes incremental=")
        }
        let storeName = mode == "pull" ? "scratch" : "target"
        if mode == "pull" {
            if disk.attribute("backup") == "yes", type == nil {
                reasons.append("\(place): backup='yes' needs type='file' or type='block'")
            }
            if let format = disk.child("driver")?.attribute("type"), format != "qcow2" {
                reasons.append("pull mode backup for disk '\(name)' requires qcow2 driver")
            }
        }
        let pathName = type == "block" ? "dev" : "file"
        if let store = disk.child(storeName) {
            let path = store.attribute(pathName)
            if path?.hasPrefix("/") != true {
                reasons.append(
                    "\(place): <\(storeName)> needs an absolute path in \(pathName)=")
            }
        } else if type == "block" || disk.child("driver") != nil {
            reasons.append("\(place): <\(storeName) \(pathName)='/path'/> is missing")
        }
        return reasons
    }
}
