import ArgumentParser
import Control
import Foundation

struct CheckpointCreate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-create", abstract: "Create a checkpoint from XML.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "Checkpoint XML; - is standard input. (default: all disks)") var file: String?
    @Flag(help: "Take up what is known of a checkpoint that was made before.") var redefine = false

    func run() async throws {
        let xml = try file.map(InputFile.text) ?? "<domaincheckpoint/>"
        var call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: xml))
        if redefine { call.query.append(("redefine", "true")) }
        let data = try await options.send(call)
        try options.output.show(data, as: CheckpointView.self) { checkpoint in
            guard !options.output.quiet else { return "" }
            let source = file.map { " from '\($0)'" } ?? ""
            return "Domain checkpoint \(checkpoint.name) created\(source)\n\n"
        }
    }
}

struct CheckpointCreateAs: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-create-as", abstract: "Create a checkpoint from options.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The checkpoint's name. (default: the time in seconds)") var name: String?
    @Option(help: "A description.") var description: String?
    @Option(
        parsing: .singleValue,
        help: "DISK[,checkpoint=TYPE][,bitmap=NAME]; may be repeated. (default: all disks)")
    var diskspec: [String] = []
    @Flag(name: .customLong("print-xml"), help: "Print the XML instead.") var printXML = false

    func run() async throws {
        let xml = try CheckpointDiskSpec.document(
            name: name, description: description, diskspecs: diskspec)
        guard !printXML else {
            Console.out(
                options.output.json
                    ? String(decoding: try ControlJSON.encode(XMLBody(xml: xml)), as: UTF8.self)
                        + "\n"
                    : xml + "\n")
            return
        }
        let call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: xml))
        let data = try await options.send(call)
        try options.output.show(data, as: CheckpointView.self) {
            options.output.quiet ? "" : "Domain checkpoint \($0.name) created\n\n"
        }
    }
}

struct CheckpointInfo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-info", abstract: "Show a checkpoint.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call("GET", "v1", "domains", domain, "checkpoints", checkpoint))
        try options.output.show(data, as: CheckpointView.self) {
            ConsoleText.checkpointInfo($0) + "\n"
        }
    }
}

struct CheckpointDumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-dumpxml", abstract: "Print a checkpoint's XML.",
        discussion: "With --size, --json also lists the changed extents of every disk.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String
    @Flag(help: "With the bytes changed since.") var size = false
    @Flag(help: "Without the domain's XML.") var noDomain = false

    func run() async throws {
        var call = ControlClient.Call(
            "GET", "v1", "domains", domain, "checkpoints", checkpoint, "xml")
        if size { call.query.append(("size", "true")) }
        if noDomain { call.query.append(("noDomain", "true")) }
        let data = try await options.send(call)
        try options.output.show(data, as: CheckpointXMLBody.self) {
            $0.xml.endingInNewline + "\n"
        }
    }
}

struct CheckpointParent: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-parent", abstract: "Print the name of a checkpoint's parent.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call(
                "GET", "v1", "domains", domain, "checkpoints", checkpoint, "parent"))
        try options.output.show(data, as: CheckpointView.self) { $0.name + "\n\n" }
    }
}

struct CheckpointDelete: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-delete", abstract: "Delete a checkpoint.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String
    @Flag(help: "Its descendants too.") var children = false
    @Flag(help: "Its descendants, not itself.") var childrenOnly = false
    @Flag(
        help: """
            Only what is known of it: its bitmaps stay until it is redefined, another takes its \
            name, or the domain is undefined with --checkpoints.
            """) var metadata = false

    func validate() throws {
        guard !children || !childrenOnly else {
            throw ValidationError("--children and --children-only exclude each other")
        }
    }

    func run() async throws {
        var call = ControlClient.Call("DELETE", "v1", "domains", domain, "checkpoints", checkpoint)
        if children { call.query.append(("children", "true")) }
        if childrenOnly { call.query.append(("childrenOnly", "true")) }
        if metadata { call.query.append(("metadata", "true")) }
        _ = try await options.send(call)
        if options.output.json { Console.out("{}\n") }
        options.output.inform(
            "Domain checkpoint \(checkpoint) \(childrenOnly ? "children deleted" : "deleted")\n")
    }
}
