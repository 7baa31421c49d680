import ArgumentParser
import Control
import Foundation

struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the domains.",
        discussion: """
            Domains are served whether their machines run or not, so all of them are listed even \
            without --all, and filters for stopped machines find none.
            """)
    @OptionGroup var options: ClientOptions
    @Flag(help: "List all domains, which is the default.") var all = false
    @Flag(help: "Print names only.") var name = false
    @Flag(help: "Print uuids only.") var uuid = false
    @Flag(help: "Only domains with checkpoints.") var withCheckpoint = false
    @Flag(help: "Only domains without checkpoints.") var withoutCheckpoint = false
    @OptionGroup var virsh: VirshListOptions

    func validate() throws {
        guard !withCheckpoint || !withoutCheckpoint else {
            throw ValidationError("--with-checkpoint and --without-checkpoint exclude each other")
        }
    }

    func run() async throws {
        let client = try options.client()
        var body = try await client.send(
            ControlClient.Call("GET", "v1", "domains"), as: DomainsBody.self)
        if virsh.findsNone { body.domains = [] }
        if withCheckpoint || withoutCheckpoint {
            var kept: [DomainView] = []
            for domain in body.domains {
                let call = ControlClient.Call("GET", "v1", "domains", domain.domain, "checkpoints")
                let list = try await client.send(call, as: CheckpointsBody.self).checkpoints
                if list.isEmpty == withoutCheckpoint { kept.append(domain) }
            }
            body.domains = kept
        }
        for problem in body.problems ?? [] { Console.error("warning: \(problem)") }
        do {
            let data = try ControlJSON.encode(body) + Data("\n".utf8)
            try options.output.show(data, as: DomainsBody.self, text)
        } catch let error as ControlError {
            throw error
        } catch {
            throw ControlError.internalError("the answer cannot be written: \(error)")
        }
    }

    private func text(_ body: DomainsBody) -> String {
        guard name || uuid else {
            return ConsoleText.domains(body.domains, quiet: options.output.quiet)
        }
        return body.domains.map { domain in
            let words = (uuid ? [domain.uuid] : []) + (name ? [domain.domain] : [])
            return words.joined(separator: " ") + "\n"
        }.joined() + "\n"
    }
}

/// Filters of virsh about what all domains have in common here, and its default form.
struct VirshListOptions: ParsableArguments {
    @Flag(help: .hidden) var inactive = false
    @Flag(help: .hidden) var stateRunning = false
    @Flag(help: .hidden) var statePaused = false
    @Flag(help: .hidden) var stateShutoff = false
    @Flag(help: .hidden) var stateOther = false
    @Flag(help: .hidden) var withSnapshot = false
    @Flag(help: .hidden) var withoutSnapshot = false
    @Flag(help: .hidden) var autostart = false
    @Flag(help: .hidden) var noAutostart = false
    @Flag(help: .hidden) var withManagedSave = false
    @Flag(help: .hidden) var withoutManagedSave = false
    @Flag(help: .hidden) var managedSave = false
    @Flag(help: .hidden) var table = false

    /// Whether no domain passes.
    var findsNone: Bool {
        let asksForState = statePaused || stateShutoff || stateOther
        return inactive || (asksForState && !stateRunning) || (withSnapshot && !withoutSnapshot)
            || (autostart && !noAutostart) || (withManagedSave && !withoutManagedSave)
    }
}
