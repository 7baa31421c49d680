import ArgumentParser
import Control
import Foundation

struct CheckpointCreate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-create", abstract: "Create a checkpoint from XML.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Argument(help: "Checkpoint XML; - is standard input. (default: all disks)") var file: String?
    @Option(name: .customLong("xmlfile"), help: "The same as <file>.") var xmlfile: String?
    @Flag(help: "Register a checkpoint that was made earlier.") var redefine = false
    @Flag(help: "With --redefine: refuse it unless every disk still has its bitmap.")
    var redefineValidate = false
    @Flag(help: "Freeze the guest's file systems for the instant; needs serve --libvirt-upstream.")
    var quiesce = false

    func validate() throws {
        guard redefine || !redefineValidate else {
            throw ValidationError("--redefine-validate needs --redefine")
        }
        guard !redefine || !quiesce else {
            throw ValidationError("--quiesce excludes --redefine")
        }
        _ = try target.and(file, xmlfile)
    }

    func run() async throws {
        let (domain, file) = try target.and(file, xmlfile)
        let xml = try file.map(InputFile.text) ?? "<domaincheckpoint/>"
        var call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: xml))
        if redefine { call.query.append(("redefine", "true")) }
        if redefineValidate { call.query.append(("redefineValidate", "true")) }
        if quiesce { call.query.append(("quiesce", "true")) }
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
    @OptionGroup var target: DomainArgument
    @Argument(
        help: ArgumentHelp(
            "The checkpoint's name, a description, and disks as with --diskspec.",
            valueName: "name> <description> <diskspec"))
    var words: [String] = []
    @Option(help: "The checkpoint's name. (default: the time in seconds)") var name: String?
    @Option(help: "A description.") var description: String?
    @Option(
        parsing: .singleValue,
        help: "DISK[,checkpoint=TYPE][,bitmap=NAME]; may be repeated. (default: all disks)")
    var diskspec: [String] = []
    @Flag(name: .customLong("print-xml"), help: "Print the XML instead.") var printXML = false
    @Flag(help: "Freeze the guest's file systems for the instant; needs serve --libvirt-upstream.")
    var quiesce = false

    func validate() throws { _ = try arguments() }

    private func arguments() throws(ValidationError) -> (
        domain: String, name: String?, description: String?, disks: [String]
    ) {
        var rest = ([target.domain].compactMap { $0 } + words)[...]
        let domain = try Words.need(target.domainOption ?? rest.popFirst(), "domain")
        let name = name ?? rest.popFirst()
        let description = description ?? rest.popFirst()
        return (domain, name, description, diskspec + rest)
    }

    func run() async throws {
        let (domain, name, description, disks) = try arguments()
        let xml = try CheckpointDiskSpec.document(
            name: name, description: description, diskspecs: disks)
        guard !printXML else {
            Console.out(
                options.output.json
                    ? String(decoding: try ControlJSON.encode(XMLBody(xml: xml)), as: UTF8.self)
                        + "\n"
                    : xml + "\n")
            return
        }
        var call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "checkpoints"], json: XMLBody(xml: xml))
        if quiesce { call.query.append(("quiesce", "true")) }
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
    @OptionGroup var target: CheckpointArguments

    func run() async throws {
        let (domain, checkpoint) = try target.names()
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
    @OptionGroup var target: CheckpointArguments
    @Flag(help: "Include the number of bytes changed since.") var size = false
    @Flag(help: "Leave out the domain's XML.") var noDomain = false
    // There are no secrets in it.
    @Flag(name: .customLong("security-info"), help: .hidden) var securityInfo = false

    func run() async throws {
        let (domain, checkpoint) = try target.names()
        var call = ControlClient.Call(
            "GET", "v1", "domains", domain, "checkpoints", checkpoint, "xml")
        if size { call.query.append(("size", "true")) }
        if noDomain { call.query.append(("noDomain", "true")) }
        let data = try await options.send(call)
        try options.output.show(data, as: CheckpointXMLBody.self) { $0.xml.endingInNewline + "\n" }
    }
}

struct CheckpointParent: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-parent", abstract: "Print the name of a checkpoint's parent.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: CheckpointArguments

    func run() async throws {
        let (domain, checkpoint) = try target.names()
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
    @OptionGroup var target: CheckpointArguments
    @Flag(help: "Delete its descendants too.") var children = false
    @Flag(help: "Delete its descendants but not the checkpoint itself.") var childrenOnly = false
    @Flag(
        help: """
            Forget the checkpoint but keep its bitmaps until it is redefined, another takes its \
            name, or the domain is undefined with --checkpoints.
            """) var metadata = false

    func validate() throws {
        guard !children || !childrenOnly else {
            throw ValidationError("--children and --children-only exclude each other")
        }
    }

    func run() async throws {
        let (domain, checkpoint) = try target.names()
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
