import ArgumentParser
import Control
import Foundation

struct Define: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Define or change a domain from its XML, and serve its disks.",
        discussion: """
            An existing domain of the same name and uuid is changed: only disks that are new, gone \
            or served differently are touched. A disk that cannot be served \
            is left out and listed with the reason.
            """)
    @OptionGroup var options: ClientOptions
    @Argument(help: "Domain XML; - is standard input.", completion: .file()) var file: String?
    @Option(name: .customLong("file"), help: "The same as <file>.") var fileOption: String?
    @Option(help: "Bytes per bit of its dirty bitmaps: a power of two, 4096 to 2097152.")
    var granularity: UInt64?
    // It always is.
    @Flag(name: .customLong("validate"), help: .hidden) var validates = false

    func validate() throws { _ = try path() }

    private func path() throws(ValidationError) -> String {
        try Words.need(try Words.fill([file], [fileOption])[0], "file")
    }
    @Flag(help: "Disconnect machines from disks that are gone or served differently.")
    var force = false

    func run() async throws {
        let file = try path()
        let body = DefineBody(xml: try InputFile.text(file), granularityBytes: granularity)
        var call = try ControlClient.Call("POST", ["v1", "domains"], json: body)
        if force { call.query.append(("force", "true")) }
        let data = try await options.send(call)
        try options.output.show(data, as: DomainView.self) { domain in
            for problem in domain.problems ?? [] where !options.output.quiet {
                Console.error("warning: \(problem)")
            }
            return options.output.quiet
                ? "" : "Domain '\(domain.domain)' defined from \(file)\n\n"
        }
    }
}

struct Undefine: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Forget a domain; refused while it is in use, has backup jobs or checkpoints.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Flag(help: "Remove its checkpoints too.") var checkpoints = false
    @Flag(help: "The same as --checkpoints.") var checkpointsMetadata = false
    @OptionGroup var ignored: IgnoredUndefineOptions

    func validate() throws { _ = try target.name() }
    @Flag(help: "Disconnect the machines that use its disks.") var force = false

    func run() async throws {
        let domain = try target.name()
        var call = ControlClient.Call("DELETE", "v1", "domains", domain)
        if checkpoints || checkpointsMetadata { call.query.append(("checkpoints", "true")) }
        if force { call.query.append(("force", "true")) }
        _ = try await options.send(call)
        if options.output.json { Console.out("{}\n") }
        options.output.inform("Domain '\(domain)' has been undefined\n")
    }
}

/// Options of virsh about what no domain has here.
struct IgnoredUndefineOptions: ParsableArguments {
    @Flag(help: .hidden) var managedSave = false
    @Flag(help: .hidden) var snapshotsMetadata = false
    @Flag(help: .hidden) var nvram = false
    @Flag(help: .hidden) var keepNvram = false
    @Flag(help: .hidden) var tpm = false
    @Flag(help: .hidden) var keepTpm = false
}

struct DumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dumpxml", abstract: "Print a domain's XML.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @OptionGroup var ignored: IgnoredXMLOptions

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call("GET", "v1", "domains", try target.name(), "xml"))
        try options.output.show(data, as: XMLBody.self) { $0.xml.endingInNewline + "\n" }
    }
}

struct DomBlkList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domblklist", abstract: "List a domain's disks.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Flag(help: "Include size, live URI, clients, dirty bytes, checkpoints.") var details = false
    // What is defined is what is served.
    @Flag(help: .hidden) var inactive = false

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call("GET", "v1", "domains", try target.name(), "disks"))
        try options.output.show(data, as: DisksBody.self) {
            ConsoleText.disks($0.disks, details: details, quiet: options.output.quiet)
        }
    }
}

extension String {
    /// The text, ended by a newline if it was not.
    var endingInNewline: String { hasSuffix("\n") ? self : self + "\n" }
}
