package import ServerInterface

/// How much of a disk a backup holds.
package enum BackupMode: String, Sendable, Hashable, Codable {
    case full
    case incremental
}

/// A backup as a client asks for it: a valid `<domainbackup>`, nothing defaulted yet.
package struct BackupRequest: Sendable, Hashable {
    /// A dirty bitmap from another base: an element of ours.
    package struct Bitmap: Sendable, Hashable {
        package var checkpoint: String
        /// Nil: the planner names it.
        package var name: String?

        package init(checkpoint: String, name: String? = nil) {
            self.checkpoint = checkpoint
            self.name = name
        }
    }

    /// The namespace of elements that libvirt's backups do not have.
    static let namespace = "urn:nbdpull:backup:1"

    /// One `<disk>` of the request.
    package struct Disk: Sendable, Hashable {
        package var target: String
        /// False for `backup='no'`; nothing else of the disk is read then.
        package var participates: Bool
        package var backupMode: BackupMode?
        /// The disk's own checkpoint to start from; may be empty, which names no checkpoint.
        package var incremental: String?
        package var exportName: String?
        package var exportBitmap: String?
        /// Bitmaps that the export offers besides.
        package var bitmaps: [Bitmap] = []
        /// Kind of the scratch; `file` unless the request says otherwise.
        package var scratchKind: SourceKind
        /// Absolute path of the scratch, or of what is elsewhere what `NetworkScratch` says; nil
        /// leaves the name to the server.
        package var scratchPath: String?
        /// Present when an adapter opens the scratch.
        package var scratchImage: ImageConfiguration?
        /// Of a push, the target's: absolute, nil leaves the name to the server.
        package var pushPath: String?
        package var pushKind = SourceKind.file
        package var pushFormat = PushFormat.qcow2

        package init(
            target: String, participates: Bool = true, backupMode: BackupMode? = nil,
            incremental: String? = nil, exportName: String? = nil, exportBitmap: String? = nil,
            scratchKind: SourceKind = .file, scratchPath: String? = nil
        ) {
            self.target = target
            self.participates = participates
            self.backupMode = backupMode
            self.incremental = incremental
            self.exportName = exportName
            self.exportBitmap = exportBitmap
            self.scratchKind = scratchKind
            self.scratchPath = scratchPath
        }
    }

    /// Permission bits of a job's unix socket.
    package static let socketMode: UInt32 = 0o600
    /// Longest path of a unix socket in bytes: `sun_path` less its final zero byte.
    package static let socketPathBytesMax = 107

    /// The server writes the targets itself, and nobody else reads.
    package var isPush = false
    /// Where the backup exports are to be served; a nil TCP port is chosen by the server, and all
    /// of it in a push.
    package var endpoint: ListenEndpoint
    /// The request's `tls`, which output repeats; nil if absent.
    package var tls: Bool?
    /// Checkpoint that all disks start from, unless they say otherwise.
    package var incremental: String?
    /// Disks listed, nil when there was no list.
    package var disks: [Disk]?

    package init(
        endpoint: ListenEndpoint, tls: Bool? = nil, incremental: String? = nil,
        disks: [Disk]? = nil
    ) {
        self.endpoint = endpoint
        self.tls = tls
        self.incremental = incremental
        self.disks = disks
    }

    /// Reads a `<domainbackup>` document.
    ///
    /// `<seclabel>` is accepted and ignored: scratch is created by this server and opened by no
    /// other process, so there is nothing to relabel.
    ///
    /// - Throws: 35 for malformed XML, 92 where it does not match the schema; 67 for rdma, for
    ///   encrypted scratch and targets, and for targets of other formats than raw and qcow2; 84 for
    ///   `transport='fd'`; 27 for a port out of range
    ///   or a socket path too long.
    package static func parse(_ xml: String) throws(ControlError) -> BackupRequest {
        let root = try XMLDocument.parse(xml, schema: .backup)
        let server = root.child("server")
        let isPush = root.attribute("mode") != "pull"
        var disks: [Disk]?
        if let list = root.child("disks") {
            disks = []
            for element in list.all("disk") {
                disks?.append(try isPush ? pushDisk(element) : disk(element))
            }
        }
        // An empty element asks for nothing, as in libvirt.
        let incremental = root.child("incremental").flatMap { $0.text.isEmpty ? nil : $0.text }
        guard !isPush, let server else {
            var request = BackupRequest(
                endpoint: .unix(path: "", mode: socketMode), tls: nil, incremental: incremental,
                disks: disks)
            request.isPush = true
            return request
        }
        return BackupRequest(
            endpoint: try endpoint(server), tls: server.attribute("tls").map { $0 == "yes" },
            incremental: incremental, disks: disks)
    }

    private static func pushDisk(_ element: XMLElement) throws(ControlError) -> Disk {
        let target = element.attribute("name") ?? ""
        guard element.attribute("backup") != "no" else {
            return Disk(target: target, participates: false)
        }
        let store = element.child("target")
        guard store?.child("encryption") == nil else { throw .targetEncryptionUnsupported(target) }
        var disk = Disk(
            target: target,
            backupMode: element.attribute("backupmode").flatMap { BackupMode(rawValue: $0) },
            incremental: element.attribute("incremental"))
        disk.pushKind = element.attribute("type").flatMap { SourceKind(rawValue: $0) } ?? .file
        disk.pushPath = store?.attribute(disk.pushKind == .file ? "file" : "dev")
        if let format = element.child("driver")?.attribute("type") {
            guard let known = PushFormat(rawValue: format) else {
                throw .targetFormatUnsupported(target, format: format)
            }
            disk.pushFormat = known
        }
        return disk
    }

    private static func endpoint(_ server: XMLElement) throws(ControlError) -> ListenEndpoint {
        let transport = server.attribute("transport") ?? "tcp"
        guard transport == "tcp" || transport == "unix" else {
            throw .transportUnsupported(transport)
        }
        if transport == "unix" {
            let path = server.attribute("socket") ?? ""
            guard path.utf8.count <= socketPathBytesMax else {
                throw .socketPathTooLong(path, bytesMax: socketPathBytesMax)
            }
            return .unix(path: path, mode: socketMode)
        }
        let host = server.attribute("name") ?? ""
        guard let text = server.attribute("port") else { return .tcp(host: host, port: nil) }
        guard let port = UInt16(text) else { throw .portInvalid(text) }
        return .tcp(host: host, port: port == 0 ? nil : port)
    }

    private static func disk(_ element: XMLElement) throws(ControlError) -> Disk {
        let target = element.attribute("name") ?? ""
        guard element.attribute("backup") != "no" else {
            return Disk(target: target, participates: false)
        }
        let scratch = element.child("scratch")
        guard scratch?.child("encryption") == nil else { throw .encryptionUnsupported(target) }
        let kind = element.attribute("type").flatMap { SourceKind(rawValue: $0) } ?? .file
        var network: NetworkScratch?
        if kind == .network, let scratch {
            network = try NetworkScratch(scratch, of: target)
        }
        var disk = Disk(
            target: target,
            backupMode: element.attribute("backupmode").flatMap { BackupMode(rawValue: $0) },
            incremental: element.attribute("incremental"),
            exportName: element.attribute("exportname"),
            exportBitmap: element.attribute("exportbitmap"), scratchKind: kind,
            scratchPath: network?.path ?? scratch?.attribute(kind == .file ? "file" : "dev"))
        disk.scratchImage = network?.image
        disk.bitmaps = element.children.filter {
            $0.name == "bitmap" && $0.namespace == namespace
        }.map {
            Bitmap(checkpoint: $0.attribute("checkpoint") ?? "", name: $0.attribute("name"))
        }
        return disk
    }
}
