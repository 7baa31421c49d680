import NBDServer

/// Reads one `<disk>` of a domain and refuses what cannot be served.
struct DomainDiskReader {
    private static let devices = ["disk", "cdrom", "floppy", "lun"]

    private let element: XMLElement
    private let target: String

    init(_ element: XMLElement) {
        self.element = element
        target = element.child("target")?.attribute("dev") ?? ""
    }

    func read() throws(ControlError) -> DomainDisk {
        let device = element.attribute("device") ?? "disk"
        guard Self.devices.contains(device) else {
            throw .xmlError("disk '\(target)' has an unknown device '\(device)'")
        }
        let kind = try sourceKind()
        let source = element.child("source")?.attribute(kind == .file ? "file" : "dev")
        let path = source?.isEmpty == true ? nil : source
        if path == nil, device != "cdrom", device != "floppy" {
            throw .xmlError("missing source information for device '\(target)'")
        }
        if path != nil {
            try checkFormat()
        }
        let driver = element.child("driver")
        return DomainDisk(
            target: target, kind: kind, path: path,
            readOnly: element.child("readonly") != nil || device == "cdrom",
            cacheMode: cacheMode(driver?.attribute("cache")),
            discardMode: try discardMode(driver?.attribute("discard")), device: device)
    }

    private func sourceKind() throws(ControlError) -> SourceKind {
        let type = element.attribute("type") ?? "file"
        guard let kind = SourceKind(rawValue: type) else {
            throw .diskUnsupported(
                target, detail: "type '\(type)' is not supported, use 'file' or 'block'")
        }
        return kind
    }

    /// Refuses sources whose bytes are not the disk's bytes from offset zero.
    private func checkFormat() throws(ControlError) {
        let format = element.child("driver")?.attribute("type") ?? "raw"
        guard format == "raw" else {
            throw .diskUnsupported(
                target, detail: "driver type '\(format)' is not supported, only 'raw' is")
        }
        let source = element.child("source")
        guard element.child("encryption") == nil, source?.child("encryption") == nil else {
            throw .diskUnsupported(target, detail: "encrypted sources are not supported")
        }
        guard source?.child("slices") == nil else {
            throw .diskUnsupported(target, detail: "slices of a source are not supported")
        }
    }

    /// `none` and `directsync` bypass the page cache.
    ///
    /// `writethrough` counts as buffered: a client that wants each write durable sends FUA.
    private func cacheMode(_ value: String?) -> CacheMode {
        value == "none" || value == "directsync" ? .none : .buffered
    }

    /// A missing attribute means `unmap`.
    ///
    /// libvirt leaves that case to the hypervisor, which ignores discards. Users of sparse files
    /// and thin volumes expect freed space to come back, and `ignore` can be said.
    private func discardMode(_ value: String?) throws(ControlError) -> DiscardMode {
        guard let value else { return .unmap }
        guard let mode = DiscardMode(rawValue: value) else {
            throw .xmlError(
                "disk '\(target)' has an unknown discard '\(value)', use 'unmap' or 'ignore'")
        }
        return mode
    }
}
