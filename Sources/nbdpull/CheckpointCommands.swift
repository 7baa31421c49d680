import ArgumentParser
import Control
import Foundation

struct CheckpointCreate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-create", abstract: "Create a checkpoint from XML.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "Checkpoint XML; - is standard input.") var file: String?
    @Flag(help: "Take up the metadata of a checkpoint that exists.") var redefine = false

    func run() async throws {
        let xml = try file.map(InputFile.text) ?? "<domaincheckpoint/>"
        var call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: xml))
        if redefine { call.query.append(("redefine", "true")) }
        _ = try await options.send(call)
    }
}

struct CheckpointCreateAs: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-create-as", abstract: "Create a checkpoint from options.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The checkpoint's name.") var name: String?
    @Option(help: "A description.") var description: String?
    @Option(help: "DISK[,checkpoint=TYPE][,bitmap=NAME]; may be repeated.") var diskspec: [String] =
        []

    func run() async throws {
        var writer = XMLWriter()
        writer.element("domaincheckpoint") { root in
            if let name { root.leaf("name", text: name) }
            if let description { root.leaf("description", text: description) }
        }
        let call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: writer.text))
        _ = try await options.send(call)
    }
}

struct CheckpointList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-list", abstract: "List a domain's checkpoints.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Flag(help: "As a tree.") var tree = false
    @Flag(help: "A column with the parent.") var parent = false
    @Flag(help: "Names only.") var name = false

    func run() async throws {
        _ = try await options.send(
            ControlClient.Call("GET", "v1", "domains", domain, "checkpoints"))
    }
}

struct CheckpointInfo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-info", abstract: "Show a checkpoint.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String

    func run() async throws {
        _ = try await options.send(
            ControlClient.Call("GET", "v1", "domains", domain, "checkpoints", checkpoint))
    }
}

struct CheckpointDumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-dumpxml", abstract: "Print a checkpoint's XML.")
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
        _ = try await options.send(call)
    }
}

struct CheckpointParent: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-parent", abstract: "Print the name of a checkpoint's parent.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String

    func run() async throws {
        _ = try await options.send(
            ControlClient.Call(
                "GET", "v1", "domains", domain, "checkpoints", checkpoint, "parent"))
    }
}

struct CheckpointDelete: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-delete", abstract: "Delete a checkpoint.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "The checkpoint's name.") var checkpoint: String
    @Flag(help: "Its children too.") var children = false
    @Flag(help: "Its children, not itself.") var childrenOnly = false
    @Flag(help: "Only what is known of it, not its bitmaps.") var metadata = false

    func run() async throws {
        var call = ControlClient.Call("DELETE", "v1", "domains", domain, "checkpoints", checkpoint)
        if children { call.query.append(("children", "true")) }
        if childrenOnly { call.query.append(("childrenOnly", "true")) }
        if metadata { call.query.append(("metadata", "true")) }
        _ = try await options.send(call)
    }
}
