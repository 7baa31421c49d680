import ArgumentParser
import Control
import Foundation
import Glibc

/// A disk, and the image that is written to it.
struct RestoreArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(help: "The disk's target.", completion: LiveNames.disks) var target: String?
    @Option(name: .customLong("target"), help: "The same as <target>.") var targetOption: String?
    @Argument(help: "The image: a file or a block device.", completion: .file())
    var image: String?
    @Option(name: .customLong("image"), help: "The same as <image>.") var imageOption: String?

    func values() throws(ValidationError) -> (domain: String, target: String, image: String) {
        let values = try Words.fill(
            [domainArgument.domain, target, image],
            [domainArgument.domainOption, targetOption, imageOption])
        return (
            try Words.need(values[0], "domain"), try Words.need(values[1], "target"),
            try Words.need(values[2], "image")
        )
    }

    func validate() throws { _ = try values() }
}

struct DiskRestore: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk-restore",
        abstract: "Overwrite a disk with an image, through its live export; needs qemu-img.",
        discussion: """
            Jobs and checkpoints of the disk see it as writes of the machine: running backups keep \
            their instant, and the next incremental backup holds what the restore has changed. The \
            image must be as large as the disk. A qcow2 image may be the newest of a chain. \
            Refused while a machine is connected, because it would see its disk change under it.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var disk: RestoreArguments
    @Option(help: "The image's format: raw, qcow2 or another that qemu-img reads. (default: raw)")
    var format: String?
    @Flag(help: "Restore although a client is connected.") var force = false

    func run() async throws {
        let (domain, target, image) = try disk.values()
        let tool = try Self.program("qemu-img")
        let path = ServeArguments.absolutePath(image)
        let format = try format ?? Self.assumedFormat(of: path)
        let view = try await view(domain, target)
        guard let uri = view.uri, let size = view.size, view.errorMessage == nil else {
            throw Self.refusal(target, "it is not served: \(view.errorMessage ?? "no medium")")
        }
        guard !view.readOnly else { throw Self.refusal(target, "it is read-only") }
        try Self.check(try Self.imageBytes(tool, path, format), against: size, target, domain)
        guard force || view.clients == 0 else {
            let clients = view.clients == 1 ? "a client" : "\(view.clients ?? 0) clients"
            throw Self.refusal(
                target, "in use by \(clients): stop the machine, or use --force")
        }
        // Without a cache mode that flushes, the last bytes would not be durable at the end.
        var arguments = ["convert", "-n", "-t", "writeback", "-f", format, "-O", "raw"]
        let showsProgress = !options.output.json && !options.output.quiet
        if showsProgress, isatty(STDOUT_FILENO) == 1 { arguments.append("-p") }
        let result = try Self.run(tool, arguments + [path, uri], capturesOutput: false)
        guard result.status == 0 else {
            throw ControlError(
                .operationFailed, code: "restore-failed", status: 500,
                detail: "qemu-img ended with \(result.status): disk '\(target)' may hold parts of "
                    + "the image now; run the restore again")
        }
        if options.output.json { Console.out("{}\n") }
        options.output.inform("Disk '\(target)' of domain '\(domain)' restored from \(path)\n")
    }

    private func view(_ domain: String, _ target: String) async throws -> DiskView {
        let disks = try await options.client().send(
            ControlClient.Call("GET", "v1", "domains", domain, "disks"), as: DisksBody.self
        ).disks
        guard let view = disks.first(where: { $0.disk == target }) else {
            throw ControlError.invalidArgument(
                what: "disk '\(target)'",
                detail: "domain '\(domain)' has only \(disks.map(\.disk).joined(separator: ", "))")
        }
        return view
    }

    private static func refusal(_ target: String, _ detail: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "restore-refused", status: 409,
            detail: "disk '\(target)': \(detail)")
    }

    // qemu takes a disk whose size is no multiple of 512 to be that much larger.
    private static func check(
        _ bytes: UInt64, against size: UInt64, _ target: String, _ domain: String
    ) throws(ControlError) {
        guard bytes != size, bytes / 512 != (size + 511) / 512 else { return }
        let advice =
            bytes > size
            ? "make the disk larger first (`nbdpull blockresize \(domain) \(target) \(bytes)b`)"
            : "the rest would keep its old content: make the image larger (`qemu-img resize`)"
        throw refusal(target, "it has \(size) bytes and the image \(bytes): \(advice)")
    }

    // What a machine wrote to its raw disk may look like another format that names files of this
    // host. So a format is never guessed.
    private static func assumedFormat(of path: String) throws(ControlError) -> String {
        guard let found = try ImageMagic.look(at: path) else { return "raw" }
        throw .invalidArgument(
            what: "image '\(path)'",
            detail: "it looks like \(found): say --format \(found), or --format raw if these are"
                + " the disk's own bytes")
    }

    private struct ImageInfo: Decodable {
        var size: UInt64
        enum CodingKeys: String, CodingKey { case size = "virtual-size" }
    }

    private static func imageBytes(
        _ tool: String, _ path: String, _ format: String
    ) throws(ControlError) -> UInt64 {
        let result = try run(
            tool, ["info", "-f", format, "--output=json", path], capturesOutput: true)
        guard result.status == 0,
            let info = try? JSONDecoder().decode(ImageInfo.self, from: result.output)
        else {
            throw .invalidArgument(
                what: "image '\(path)'", detail: "qemu-img cannot read it as \(format)")
        }
        return info.size
    }

    private static func program(_ name: String) throws(ControlError) -> String {
        let search = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        for directory in search.split(separator: ":") {
            let path = "\(directory)/\(name)"
            if FileManager.default.isExecutableFile(atPath: path) { return path }
        }
        throw .invalidArgument(
            what: name, detail: "it is not installed: install the package qemu-utils")
    }

    private static func run(
        _ tool: String, _ arguments: [String], capturesOutput: Bool
    ) throws(ControlError) -> (status: Int32, output: Data) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: tool)
        process.arguments = arguments
        let pipe = Pipe()
        if capturesOutput { process.standardOutput = pipe }
        do {
            try process.run()
            let output = capturesOutput ? try pipe.fileHandleForReading.readToEnd() : nil
            process.waitUntilExit()
            return (process.terminationStatus, output ?? Data())
        } catch {
            throw .invalidArgument(what: tool, detail: "cannot be run: \(error)")
        }
    }
}
