import ArgumentParser
import Control
import Foundation

struct CheckpointList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint-list", abstract: "List a domain's checkpoints.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Flag(help: "Add a column with the parent.") var parent = false
    @Flag(help: "Only checkpoints without a parent.") var roots = false
    @Flag(help: "Only checkpoints without children.") var leaves = false
    @Flag(help: "Only checkpoints with children.") var noLeaves = false
    @Flag(help: "Print a tree.") var tree = false
    @Option(help: "Only the children of this checkpoint.") var from: String?
    @Flag(help: "With --from: all its descendants.") var descendants = false
    @Flag(help: "Print names only.") var name = false
    @Flag(help: "Sort parents before their children instead of by name.") var topological = false

    func validate() throws {
        _ = try target.name()
        let exclusive = [
            ("--tree", tree, "--name", name), ("--tree", tree, "--parent", parent),
            ("--tree", tree, "--roots", roots), ("--parent", parent, "--roots", roots),
            ("--leaves", leaves, "--no-leaves", noLeaves),
            ("--roots", roots, "--from", from != nil),
            ("--tree", tree, "--leaves", leaves), ("--tree", tree, "--no-leaves", noLeaves),
            ("--parent", parent, "--name", name),
        ]
        for (one, isOne, other, isOther) in exclusive where isOne && isOther {
            throw ValidationError("\(one) and \(other) exclude each other")
        }
        guard from != nil || !descendants else {
            throw ValidationError("--descendants needs --from")
        }
    }

    func run() async throws {
        let data = try await options.send(call(try target.name()))
        try options.output.show(data, as: CheckpointsBody.self) { body in
            if tree { return ConsoleText.checkpointTree(body.checkpoints, root: from) }
            if name { return ConsoleText.checkpointNames(body.checkpoints) }
            return ConsoleText.checkpoints(
                body.checkpoints, parents: parent, quiet: options.output.quiet)
        }
    }

    private func call(_ domain: String) -> ControlClient.Call {
        var call = ControlClient.Call("GET", "v1", "domains", domain, "checkpoints")
        func set(_ name: String, _ isSet: Bool) {
            if isSet { call.query.append((name, "true")) }
        }
        set("roots", roots)
        set("leaves", leaves)
        set("noLeaves", noLeaves)
        // The tree below a checkpoint is drawn from all of its descendants.
        set("descendants", descendants || (tree && from != nil))
        set("topological", topological || tree)
        if let from { call.query.append(("from", from)) }
        return call
    }
}
