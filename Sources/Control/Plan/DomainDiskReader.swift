import ServerInterface

/// Reads one `<disk>` of a domain: what can be served, what cannot, and what is refused.
///
/// `docs/domain-xml.md` is this file for users.
struct DomainDiskReader {
    private static let devices = ["disk", "cdrom", "floppy", "lun"]
    /// libvirt's other kinds of sources.
    private static let unservedTypes = [
        "dir", "network", "nvme", "vhostuser", "vhostvdpa", "volume",
    ]
    /// Formats that libvirt knows beside `raw`.
    private static let unservedFormats = [
        "aio", "auto", "bochs", "cloop", "cow", "dmg", "fat", "iso", "luks", "parallels", "ploop",
        "qcow", "qcow2", "qed", "vdi", "vhd", "vhdx", "vmdk", "vpc",
    ]
    private static let cacheModes: [String: CacheMode] = [
        "default": .buffered, "none": .none, "directsync": .none, "writethrough": .buffered,
        "writeback": .buffered, "unsafe": .buffered,
    ]
    private static let startupPolicies = ["mandatory", "requisite", "optional"]

    private let element: XMLElement
    private let target: String
    /// Reports what would be refused today as a warning: the definition was accepted once.
    private let isKept: Bool
    private(set) var warnings: [String] = []

    init(_ element: XMLElement, isKept: Bool = false) {
        self.element = element
        self.isKept = isKept
        target = element.child("target")?.attribute("dev") ?? ""
    }

    private var source: XMLElement? { element.child("source") }
    /// Says where the bytes of a disk are whose machine has it by a socket: an element of this
    /// project's own, which libvirt passes over.
    static let namespace = "urn:nbdpull:disk:1"
    private var backing: XMLElement? {
        guard element.attribute("type") == "vhostuser" else { return nil }
        return element.children.first { $0.name == "source" && $0.namespace == Self.namespace }
    }
    private var driver: XMLElement? { element.child("driver") }

    mutating func read() throws(ControlError) -> DomainDisk {
        let device = element.attribute("device") ?? "disk"
        guard Self.devices.contains(device) else {
            throw .xmlError("disk '\(target)' has an unknown device '\(device)'")
        }
        let type = element.attribute("type") ?? "file"
        let backed = try backingKind()
        let address = upstreamAddress(type)
        let needsAdapter = DomainImageReader.isNeeded(element, backing ?? source)
        let kind: SourceKind? =
            type == "network"
            ? (address.uri != nil || needsAdapter ? .network : nil)
            : SourceKind(rawValue: type) ?? backed
        guard kind != nil || Self.unservedTypes.contains(type) else {
            throw .xmlError("disk '\(target)' has an unknown type '\(type)'")
        }
        let (image, imageFault) = image(needsAdapter ? kind : nil)
        let path =
            address.uri ?? image?.path ?? (imageFault == nil ? nil : sourceName)
            ?? kind.flatMap { sourcePath($0) }
        if path == nil, kind != nil || source == nil, device != "cdrom", device != "floppy" {
            throw .xmlError("missing source information for device '\(target)'")
        }
        var reason = address.fault ?? imageFault
        if reason == nil, kind != nil || source != nil {
            reason = try unservedReason(kind, type, path, isImage: image != nil)
        }
        let patience = address.uri == nil && image == nil ? nil : try reconnectDelay()
        let readOnly = element.child("readonly") != nil || device == "cdrom"
        try refuseUnkeptPromises(readOnly: readOnly)
        return DomainDisk(
            target: target, kind: kind ?? .file, path: path, readOnly: readOnly,
            cacheMode: try cacheMode((backing ?? driver)?.attribute("cache")),
            discardMode: try discardMode((backing ?? driver)?.attribute("discard")),
            device: device,
            unserved: reason.map {
                DomainDisk.Unserved(type: type, source: path ?? sourceName, reason: $0)
            }, isOptional: try isOptional(),
            vhostSocket: backing == nil ? nil : source?.attribute("path"),
            patienceSeconds: patience, image: image?.image)
    }

    /// What an adapter is to open, or why it cannot; neither: the disk needs none, or has no media.
    private func image(
        _ kind: SourceKind?
    ) -> (found: DomainImageReader.Found?, fault: String?) {
        guard let kind, let place = backing ?? source else { return (nil, nil) }
        do throws(DomainImageReader.Fault) {
            return (try DomainImageReader(element, place, kind).read(), nil)
        } catch {
            return (nil, error.reason)
        }
    }

    // MARK: Upstreams

    /// The URI of an NBD source, or why it has none that could be served; neither: it is another
    /// source.
    private func upstreamAddress(_ type: String) -> (uri: String?, fault: String?) {
        guard type == "network", source?.attribute("protocol") == "nbd" else { return (nil, nil) }
        guard let source else { return (nil, nil) }
        do throws(UpstreamAddressFault) {
            return (try UpstreamElement(source).address().uri, nil)
        } catch {
            return (nil, "its NBD source cannot be reached: \(error.detail)")
        }
    }

    private mutating func reconnectDelay() throws(ControlError) -> Int? {
        guard let text = source?.child("reconnect")?.attribute("delay") else { return nil }
        guard let seconds = Int(text), (0...86400).contains(seconds) else {
            try refuse("<reconnect delay='\(text)'/>: seconds from 0 to 86400 are possible")
            return nil
        }
        return seconds
    }

    private func sourcePath(_ kind: SourceKind) -> String? {
        let path = (backing ?? source)?.attribute(kind == .file ? "file" : "dev")
        return path?.isEmpty == true ? nil : path
    }

    /// The kind of what is behind a socket; nil: the disk is no such, or does not say.
    private func backingKind() throws(ControlError) -> SourceKind? {
        guard let backing else { return nil }
        guard source?.attribute("type") ?? "unix" == "unix", source?.attribute("path") != nil
        else {
            throw .xmlError(
                "disk '\(target)' needs <source type='unix' path='SOCKET'/> for its machine")
        }
        switch (backing.attribute("file"), backing.attribute("dev")) {
        case (.some, nil): return .file
        case (nil, .some): return .block
        default:
            throw .xmlError(
                "<source xmlns='\(Self.namespace)'> of disk '\(target)' needs file='PATH' or"
                    + " dev='PATH', one of them")
        }
    }

    /// What is shown for a source that is neither file nor device.
    private var sourceName: String? {
        if let pool = source?.attribute("pool"), let volume = source?.attribute("volume") {
            return "\(pool)/\(volume)"
        }
        return ["name", "dir", "dev", "path"].lazy.compactMap { source?.attribute($0) }.first
    }

    /// Why the bytes of the source are not the disk's bytes from offset zero, or not to be had
    /// here.
    private func unservedReason(
        _ kind: SourceKind?, _ type: String, _ path: String?, isImage: Bool
    ) throws(ControlError) -> String? {
        let format = driver?.attribute("type") ?? "raw"
        guard format == "raw" || Self.unservedFormats.contains(format) else {
            throw .xmlError("disk '\(target)' has an unknown driver type '\(format)', use 'raw'")
        }
        if kind == nil, type == "vhostuser" {
            return "its type is 'vhostuser' and no <source xmlns='\(Self.namespace)'> says where"
                + " its bytes are"
        }
        guard kind != nil else {
            return type == "network"
                ? "its type is 'network' and its protocol"
                    + " '\(source?.attribute("protocol") ?? "")', only"
                    + " \((["nbd"] + DomainImageReader.protocols).map { "'\($0)'" }.joined(separator: ", "))"
                    + " can be served"
                : "its type is '\(type)', only 'file', 'block' and 'network' can be served"
        }
        guard path != nil else { return nil }
        if format != "raw", !isImage {
            return "its driver type is '\(format)', only"
                + " \(ImageFormat.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", "))"
                + " can be served"
        }
        if source?.child("slices") != nil { return "it is a slice of its source" }
        if source?.child("dataStore") != nil, !isImage { return "its data lie in another store" }
        if source?.attribute("fdgroup") != nil {
            return "its source is a descriptor that was passed to the hypervisor"
        }
        if element.child("backingStore")?.children.isEmpty == false, !isImage {
            return "it has a backing store, which a raw source cannot have here"
        }
        return nil
    }

    /// Refuses what a disk asks for and would silently not get.
    private mutating func refuseUnkeptPromises(readOnly: Bool) throws(ControlError) {
        if element.child("transient") != nil {
            try refuse(
                "<transient/> is not supported: what the machine writes would stay on the disk")
        }
        if element.child("shareable") != nil, !readOnly {
            try refuse(
                "<shareable/> is not supported: writes that do not pass through this server would "
                    + "be missing from its backups")
        }
        if element.child("mirror") != nil {
            try refuse("<mirror> is not supported: end the block job first")
        }
    }

    private mutating func refuse(_ detail: String) throws(ControlError) {
        let error = ControlError.diskUnsupported(target, detail: detail)
        guard isKept else { throw error }
        warnings.append(error.message)
    }

    /// `none` and `directsync` bypass the page cache.
    ///
    /// `writethrough` counts as buffered: a client that wants each write durable sends FUA.
    private mutating func cacheMode(_ value: String?) throws(ControlError) -> CacheMode {
        guard let value else { return .buffered }
        if let mode = Self.cacheModes[value] { return mode }
        try refuse(
            "cache '\(value)' is unknown, use one of "
                + Self.cacheModes.keys.sorted().map { "'\($0)'" }.joined(separator: ", "))
        return .buffered
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

    private mutating func isOptional() throws(ControlError) -> Bool {
        guard let policy = source?.attribute("startupPolicy") else { return false }
        if !Self.startupPolicies.contains(policy) {
            try refuse("startupPolicy '\(policy)' is unknown")
        }
        return policy == "optional"
    }
}
