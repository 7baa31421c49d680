import ArgumentParser
import Control
import Foundation
import ServerInterface

/// virsh's words for which state of a machine a change is for: here there is one, and it is kept.
struct ChangeTimeOptions: ParsableArguments {
    @Flag(help: "Accepted for virsh: changes are always made now and kept.") var config = false
    @Flag(help: "The same.") var live = false
    @Flag(help: "The same.") var current = false
    @Flag(help: "The same.") var persistent = false
}

struct AttachDisk: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach-disk", abstract: "Add a disk to a domain and serve it.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var disk: NewDiskArguments
    @Option(help: "file or block. (default: whatever the source is)") var sourcetype: String?
    @Option(help: "disk, cdrom, floppy or lun. (default: disk)") var type: String?
    @Option(help: "readonly.") var mode: String?
    @Option(help: "Cache mode: none, writeback, ...") var cache: String?
    @Option(help: "unmap or ignore.") var discard: String?
    @Option(help: "The image's format, raw unless given.") var subdriver: String?
    @Option(help: "Kept in the XML.") var driver: String?
    @Option(help: "Kept in the XML.") var targetbus: String?
    @Option(help: "Kept in the XML.") var serial: String?
    @Flag(name: .customLong("print-xml"), help: "Print the XML instead.") var printXML = false
    @OptionGroup var changeTime: ChangeTimeOptions

    func validate() throws {
        guard mode == nil || mode == "readonly" else {
            throw ValidationError("--mode must be readonly")
        }
        guard sourcetype == nil || sourcetype == "file" || sourcetype == "block" else {
            throw ValidationError("--sourcetype must be file or block")
        }
    }

    func run() async throws {
        let (domain, source, target) = try disk.values()
        let xml = xml(source, target)
        guard !printXML else { return Console.out(xml) }
        // Indented as it will be in the domain's XML.
        let placed = xml.replacing("\n", with: "\n    ")
        try await options.change(
            ControlClient.Call(
                "POST", ["v1", "domains", domain, "disks"], json: XMLBody(xml: placed)),
            done: "Disk attached successfully")
    }

    private func xml(_ source: String, _ target: String) -> String {
        let path = ServeArguments.absolutePath(source)
        let kind = sourcetype ?? ServeArguments.sourceKind(of: path).rawValue
        var writer = XMLWriter()
        writer.element("disk", [("type", kind), ("device", type ?? "disk")]) { disk in
            disk.empty(
                "driver",
                [
                    ("name", driver), ("type", subdriver ?? "raw"), ("cache", cache),
                    ("discard", discard),
                ])
            disk.empty("source", [(kind == "block" ? "dev" : "file", path)])
            disk.empty("target", [("dev", target), ("bus", targetbus)])
            if mode == "readonly" { disk.empty("readonly") }
            if let serial { disk.leaf("serial", text: serial) }
        }
        return writer.text
    }
}

struct AttachDevice: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach-device", abstract: "Add a disk to a domain from its XML.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var device: DeviceArguments
    @OptionGroup var changeTime: ChangeTimeOptions

    func run() async throws {
        let (domain, file) = try device.values()
        try await options.change(
            ControlClient.Call(
                "POST", ["v1", "domains", domain, "disks"],
                json: XMLBody(xml: try InputFile.text(file))),
            done: "Device attached successfully")
    }
}

struct DetachDisk: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "detach-disk",
        abstract: "Remove a disk from a domain; refused while a machine uses it.",
        discussion: "The disk leaves the domain's checkpoints; other disks keep theirs.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var disk: DiskTargetArguments
    @Flag(help: "Disconnect the machines that use it.") var force = false
    @OptionGroup var changeTime: ChangeTimeOptions

    func run() async throws {
        let (domain, target) = try disk.values()
        var call = ControlClient.Call("DELETE", "v1", "domains", domain, "disks", target)
        if force { call.query.append(("force", "true")) }
        _ = try await options.send(call)
        if options.output.json { Console.out("{}\n") }
        options.output.inform("Disk detached successfully\n")
    }
}

struct UpdateDevice: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "update-device",
        abstract: "Change how a domain's disk is described.",
        discussion: """
            Refused while a machine uses the disk, if it would be served differently (source, \
            cache, discard, readonly).
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var device: DeviceArguments
    @Flag(help: "Disconnect the machines that use it.") var force = false
    @OptionGroup var changeTime: ChangeTimeOptions

    func run() async throws {
        let (domain, file) = try device.values()
        try await options.change(
            ControlClient.Call(
                "PUT", ["v1", "domains", domain, "disks"],
                json: XMLBody(xml: try InputFile.text(file))),
            force: force, done: "Device updated successfully")
    }
}

struct ChangeMedia: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "change-media", abstract: "Change the medium in a CD or floppy drive.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var media: MediaArguments
    @Flag(help: "Empty the drive.") var eject = false
    @Flag(help: "Insert the medium; implied by naming one.") var insert = false
    @Flag(help: "The same.") var update = false
    @Flag(help: "The medium is a block device. (default: detected)") var block = false
    @Flag(help: "Disconnect the machines that use it.") var force = false
    @OptionGroup var changeTime: ChangeTimeOptions

    func validate() throws {
        guard eject == (try media.values().source == nil) else {
            throw ValidationError("give the new medium, or --eject")
        }
    }

    func run() async throws {
        let (domain, path, source) = try media.values()
        let medium = source.map(ServeArguments.absolutePath)
        let isDevice = block || medium.map { ServeArguments.sourceKind(of: $0) } == .block
        try await options.change(
            ControlClient.Call(
                "PUT", ["v1", "domains", domain, "disks", path, "media"],
                json: MediaBody(source: medium, block: isDevice)),
            force: force, done: "Successfully \(eject ? "ejected" : "updated") media.")
    }
}

struct BlockResize: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "blockresize", abstract: "Enlarge a domain's disk while it is served.",
        discussion: """
            Connected machines keep the size they know; new connections get the new one. A file \
            is extended; a device must have grown already.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var disk: DiskSizeArguments
    @Flag(help: "Sizes without a unit are in bytes.") var bytes = false
    @Flag(help: "Use the size that the source has now.") var capacity = false

    func validate() throws {
        guard capacity == (try disk.values().size == nil) else {
            throw ValidationError("give the new size, or --capacity")
        }
    }

    func run() async throws {
        let (domain, path, size) = try disk.values()
        var wanted: UInt64?
        if let size { wanted = try ScaledSize.bytes(size, unit: bytes ? 1 : 1024) }
        try await options.change(
            ControlClient.Call(
                "PUT", ["v1", "domains", domain, "disks", path, "size"],
                json: SizeBody(sizeBytes: wanted, capacity: capacity ? true : nil)),
            done: "Block device '\(path)' is resized")
    }
}

extension ClientOptions {
    /// Sends a change of a disk and says that it is done; one that is not served afterwards is a
    /// warning.
    fileprivate func change(
        _ call: ControlClient.Call, force: Bool = false, done: String
    ) async throws {
        var call = call
        if force { call.query.append(("force", "true")) }
        try output.show(try await send(call), as: DiskView.self) { disk in
            guard !output.quiet else { return "" }
            if let reason = disk.errorMessage {
                Console.error("warning: disk '\(disk.disk)': \(reason)")
            }
            return done + "\n\n"
        }
    }
}
