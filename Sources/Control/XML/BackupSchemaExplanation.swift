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
        let parts = ["incremental", "disks"] + (mode == "push" ? [] : ["server"])
        reasons += FormCheck.children(of: root, allowed: parts, repeatable: ["server"])
        reasons += FormCheck.text(in: root)
        let servers = root.all("server")
        if mode == "push", !servers.isEmpty {
            reasons.append("use of <server> requires pull mode backup")
        }
        if mode == "pull", servers.count != 1 {
            reasons.append("pull mode needs exactly one <server>, found \(servers.count)")
        }
        reasons += servers.flatMap(serverReasons)
        let lists = root.all("disks")
        for list in lists {
            reasons += FormCheck.children(of: list, allowed: [], repeatable: ["disk"])
            if list.all("disk").isEmpty {
                reasons.append(
                    "\(FormCheck.place(list)) must list at least one <disk name='TARGET'/>; leave it "
                        + "out to mean every disk")
            }
        }
        reasons += lists.flatMap { $0.all("disk") }.flatMap { diskReasons($0, mode: mode) }
        return Array(reasons.prefix(XMLDocument.reportsMax))
    }

    private static let serverAttributes = [
        "unix": ["tls", "transport", "socket"], "tcp": ["tls", "transport", "name", "port"],
        "rdma": ["tls", "transport", "name", "port"], "fd": ["tls", "transport", "fdgroup"],
    ]

    private static func serverReasons(_ server: XMLElement) -> [String] {
        let place = FormCheck.place(server)
        let transport = server.attribute("transport") ?? "tcp"
        var reasons = FormCheck.value(of: "tls", in: server, allowed: ["yes", "no"])
        reasons += FormCheck.children(of: server, allowed: [])
        if let allowed = serverAttributes[transport] {
            for attribute in server.attributes
            where attribute.isForeign || !allowed.contains(attribute.name) {
                reasons.append(
                    "\(place) with transport='\(transport)': attribute '\(attribute.name)' is not "
                        + "allowed: \(Spelling.advice(attribute.name, known: allowed))")
            }
        }
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
            reasons += hostReasons(server, transport)
            if let port = server.attribute("port"),
                port.isEmpty || !port.utf8.allSatisfy(FormCheck.isDigit)
            {
                reasons.append("\(place) has a port '\(port)' that is not a number")
            }
        case "fd":
            if server.attribute("fdgroup") == nil {
                reasons.append("\(place) with transport='fd' needs fdgroup='NAME'")
            }
        default:
            reasons.append(
                "\(place) has an unknown transport '\(transport)': "
                    + Spelling.advice(transport, known: ["unix", "tcp"]))
        }
        return reasons
    }

    private static func hostReasons(_ server: XMLElement, _ transport: String) -> [String] {
        let place = FormCheck.place(server)
        guard let host = server.attribute("name") else {
            return ["\(place) with transport='\(transport)' needs name='HOST'"]
        }
        if host.hasPrefix("["), host.hasSuffix("]") {
            let bare = host.dropFirst().dropLast()
            return ["\(place): name='\(host)': write the address without brackets, name='\(bare)'"]
        }
        let isHost =
            !host.isEmpty
            && host.utf8.allSatisfy { byte in
                FormCheck.isDigit(byte) || ".:_-".utf8.contains(byte)
                    || (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                    || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte)
            }
        guard !isHost else { return [] }
        return [
            "\(place): name='\(host)' is no host: it may hold letters of ASCII, digits, '.', ':', "
                + "'-' and '_'"
        ]
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
        if let type, !(["file", "block"] + (mode == "pull" ? ["network"] : [])).contains(type) {
            reasons.append("\(place): unsupported disk backup type '\(type)'")
        }
        reasons += FormCheck.value(of: "backup", in: disk, allowed: ["yes", "no"])
        reasons += FormCheck.value(of: "backupmode", in: disk, allowed: ["full", "incremental"])
        if disk.attribute("backup") == "no" {
            let rest = disk.children.map { "<\($0.name)>" } + (type == nil ? [] : ["type="])
            if !rest.isEmpty {
                reasons.append(
                    "\(place): backup='no' excludes \(rest.joined(separator: " and "))")
            }
            return reasons
        }
        if disk.attribute("backupmode") == "full", disk.attribute("incremental") != nil {
            reasons.append("\(place): backupmode='full' excludes incremental=")
        }
        if mode == "pull", disk.attribute("backup") == "yes", type == nil {
            reasons.append(
                "\(place): backup='yes' needs type='file', type='block' or type='network'")
        }
        return reasons + storeReasons(disk, place, name: name, isPull: mode == "pull")
    }

    private static func storeReasons(
        _ disk: XMLElement, _ place: String, name: String, isPull: Bool
    ) -> [String] {
        let (store, other) = isPull ? ("scratch", "target") : ("target", "scratch")
        let isOurs = { (child: XMLElement) in
            isPull && child.name == "bitmap" && child.namespace == BackupRequest.namespace
        }
        let plain = XMLElement(
            name: disk.name, attributes: disk.attributes,
            children: disk.children.filter { !isOurs($0) }, text: disk.text, line: disk.line)
        var reasons = FormCheck.children(
            of: plain, allowed: ["driver", store], repeatable: [other])
        for bitmap in disk.children where isOurs(bitmap) {
            reasons += FormCheck.attributes(of: bitmap, allowed: ["checkpoint", "name"])
            if bitmap.attribute("checkpoint") == nil {
                reasons.append("\(FormCheck.place(bitmap)) needs checkpoint='NAME'")
            }
        }
        if let other = disk.child(other) {
            reasons.append(
                "\(FormCheck.place(other)) is not allowed in a <disk> of \(isPull ? "pull" : "push") "
                    + "mode, use <\(store)>")
        }
        if isPull, let format = disk.child("driver")?.attribute("type"), format != "qcow2" {
            reasons.append("pull mode backup for disk '\(name)' requires qcow2 driver")
        }
        if isPull, disk.attribute("type") == "network" {
            return reasons + networkReasons(disk, place)
        }
        let isBlock = disk.attribute("type") == "block"
        let pathName = isBlock ? "dev" : "file"
        guard let found = disk.child(store) else {
            if isPull, isBlock || disk.child("driver") != nil {
                reasons.append("\(place): <\(store) \(pathName)='/path'/> is missing")
            }
            return reasons
        }
        reasons += FormCheck.attributes(of: found, allowed: [pathName])
        reasons += FormCheck.children(
            of: found, allowed: ["encryption"], repeatable: ["seclabel"])
        if found.attribute(pathName)?.hasPrefix("/") != true {
            reasons.append("\(place): <\(store)> needs an absolute path in \(pathName)=")
        }
        return reasons
    }

    private static func networkReasons(_ disk: XMLElement, _ place: String) -> [String] {
        guard let found = disk.child("scratch") else {
            return ["\(place): <scratch protocol='nbd'> with a <host> is missing"]
        }
        var reasons = FormCheck.attributes(of: found, allowed: ["protocol", "name", "tls"])
        reasons += FormCheck.value(of: "protocol", in: found, allowed: NetworkScratch.protocols)
        reasons += FormCheck.value(of: "tls", in: found, allowed: ["yes", "no"])
        if found.attribute("protocol") == nil {
            reasons.append("\(FormCheck.place(found)) needs protocol='nbd' or protocol='rbd'")
        }
        let known = found.children.filter { $0.namespace == nil }
        let plain = XMLElement(name: found.name, children: known, line: found.line)
        reasons += FormCheck.children(
            of: plain, allowed: ["config", "auth"], repeatable: ["host"])
        for host in found.all("host") {
            reasons += FormCheck.attributes(
                of: host, allowed: ["transport", "socket", "name", "port"])
        }
        return reasons
    }
}
