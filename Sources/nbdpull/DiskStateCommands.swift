import ArgumentParser
import Control
import Foundation

struct DiskExportState: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk-export-state",
        abstract: "Let go of disks, and write what another server needs to go on with them.",
        discussion: """
            The disks are closed and not served here any more. On the other host define the \
            domain with the same uuid and give the file to disk-import-state. Refused while the \
            domain has a backup job, or a machine uses a disk. Broken off, give it again.
            """)
    @OptionGroup var options: ClientOptions
    @Argument(
        help: ArgumentHelp(
            "The domain, its disks, and the file to write. (default: all disks that can change)",
            valueName: "domain> <disk> ... <file"))
    var words: [String] = []
    @Flag(help: "Disconnect the machines that use them.") var force = false

    func validate() throws {
        guard words.count >= 2 else {
            throw ValidationError(
                "Missing expected argument '<\(words.isEmpty ? "domain" : "file")>'")
        }
    }

    func run() async throws {
        let disks = Array(words[1..<(words.count - 1)])
        let body = ExportStateBody(
            file: ServeArguments.absolutePath(words[words.count - 1]),
            disks: disks.isEmpty ? nil : disks, force: force)
        let data = try await options.send(
            try ControlClient.Call(
                "POST", ["v1", "domains", words[0], "state", "export"], json: body))
        try options.output.show(data, as: MoveView.self) { move in
            guard !options.output.quiet else { return "" }
            return move.disks.map {
                "Disk \($0.disk) exported, with \(ConsoleText.checkpointCount($0.checkpoints))\n"
            }.joined()
        }
    }
}

struct DiskImportState: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk-import-state",
        abstract: "Go on with the checkpoints of disks that another server has exported.",
        discussion: """
            Where nothing shows that a disk is as it was left, every block of it counts as \
            changed: the next incremental backup is as large as a full one.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Argument(help: "The file that disk-export-state wrote.", completion: .file())
    var file: String?
    @Flag(help: "Disconnect the machines that use the disks.") var force = false
    @Flag(help: "Take the disks for those that were exported, and for unchanged since.")
    var unchanged = false

    func validate() throws { _ = try names() }

    private func names() throws(ValidationError) -> (domain: String, file: String) {
        let (domain, file) = try target.and(file, nil)
        return (domain, try Words.need(file, "file"))
    }

    func run() async throws {
        let (domain, file) = try names()
        let body = ImportStateBody(
            file: ServeArguments.absolutePath(file), force: force, unchanged: unchanged)
        let data = try await options.send(
            try ControlClient.Call(
                "POST", ["v1", "domains", domain, "state", "import"], json: body))
        try options.output.show(data, as: MoveView.self) { move in
            for disk in move.disks {
                guard let reason = disk.allChanged else { continue }
                Console.error(
                    "warning: every block of disk '\(disk.disk)' counts as changed: \(reason)")
            }
            guard !options.output.quiet else { return "" }
            return move.disks.map {
                "Disk \($0.disk) imported, with \(ConsoleText.checkpointCount($0.checkpoints))\n"
            }.joined()
        }
    }
}

extension ConsoleText {
    fileprivate static func checkpointCount(_ names: [String]) -> String {
        names.count == 1 ? "1 checkpoint" : "\(names.count) checkpoints"
    }
}
