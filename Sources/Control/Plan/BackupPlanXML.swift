package import ServerInterface

extension BackupPlan {
    /// Describes the job as libvirt's `backup-dumpxml` does, every default filled in.
    ///
    /// - Parameter startedEndpoint: the endpoint with its real port, once the job runs.
    package func xml(startedEndpoint: ListenEndpoint?) -> String {
        var writer = XMLWriter()
        let isPush = push != nil
        writer.element("domainbackup", [("mode", isPush ? "push" : "pull")]) { root in
            if let incremental {
                root.leaf("incremental", text: incremental)
            }
            if !isPush { writeServer(startedEndpoint ?? endpoint, to: &root) }
            root.element("disks") { list in
                for disk in disks {
                    Self.write(disk, to: &list)
                }
            }
        }
        return writer.text
    }

    private func writeServer(_ endpoint: ListenEndpoint, to writer: inout XMLWriter) {
        let tls = tls.map { $0 ? "yes" : "no" }
        switch endpoint {
        case .unix(let path, _):
            writer.empty("server", [("transport", "unix"), ("tls", tls), ("socket", path)])
        case .tcp(let host, let port):
            writer.empty(
                "server",
                [
                    ("transport", "tcp"), ("tls", tls), ("name", host),
                    ("port", port.map(String.init)),
                ]
            )
        }
    }

    private static func write(_ disk: Disk, to writer: inout XMLWriter) {
        guard disk.participates, let scratch = disk.scratch else {
            writer.empty("disk", [("name", disk.target), ("backup", "no")])
            return
        }
        if let target = disk.pushTarget { return write(disk, target, to: &writer) }
        let attributes: [(String, String?)] = [
            ("name", disk.target), ("backup", "yes"), ("type", scratch.kind.rawValue),
            ("backupmode", disk.backupMode.rawValue), ("incremental", disk.incremental),
            ("exportname", disk.exportName), ("exportbitmap", disk.exportBitmap),
            ("index", disk.index.map(String.init)),
        ]
        writer.element("disk", attributes) { body in
            // Clients expect the element; the format of scratch is this server's own affair.
            body.empty("driver", [("type", "qcow2")])
            switch scratch.kind {
            case .file: body.empty("scratch", [("file", scratch.path)])
            case .block: body.empty("scratch", [("dev", scratch.path)])
            case .network: scratch.writeNetwork(to: &body)
            }
            for bitmap in disk.moreBitmaps ?? [] {
                body.empty(
                    "bitmap",
                    [
                        ("xmlns", BackupRequest.namespace), ("checkpoint", bitmap.checkpoint),
                        ("name", bitmap.name),
                    ])
            }
        }
    }

    private static func write(
        _ disk: Disk, _ target: PushTarget, to writer: inout XMLWriter
    ) {
        let attributes: [(String, String?)] = [
            ("name", disk.target), ("backup", "yes"), ("type", target.kind.rawValue),
            ("backupmode", disk.backupMode.rawValue), ("incremental", disk.incremental),
            ("index", disk.index.map(String.init)),
        ]
        writer.element("disk", attributes) { body in
            body.empty("driver", [("type", target.format.rawValue)])
            body.empty("target", [(target.kind == .file ? "file" : "dev", target.path)])
        }
    }
}
