import ArgumentParser
import Control
import Foundation

struct Event: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Print recent events, one per line.",
        discussion: """
            With --all or --event, and without --follow, wait for the next event, as virsh does.
            """)
    @OptionGroup var options: ClientOptions
    @Option(
        name: .customLong("domain"), help: "Only this domain's events.",
        completion: LiveNames.domains)
    var domain: String?
    @Option(help: "Only events of this kind; see --list.") var event: String?
    @Flag(help: "Wait for events of any kind.") var all = false
    @Flag(help: "Keep printing events as they happen.") var follow = false
    @Flag(help: "The same as --follow, without past events.") var loop = false
    @Option(help: "Wait for at most this many seconds.") var timeout: UInt32?
    @Flag(help: "List the kinds of events.") var list = false
    // Every line has its time.
    @Flag(help: .hidden) var timestamp = false

    private static let virshNames = ["job-completed": ControlEvent.Kind.jobEnd]

    func validate() throws {
        guard !all || event == nil else {
            throw ValidationError("--all and --event exclude each other")
        }
        guard let event, Self.kind(event) == nil else { return }
        let known = ControlEvent.Kind.allCases.map(\.rawValue)
        throw ValidationError(
            "Unknown event '\(event)': \(Spelling.advice(event, known: known))")
    }

    private static func kind(_ name: String) -> ControlEvent.Kind? {
        ControlEvent.Kind(rawValue: name) ?? virshNames[name]
    }

    func run() async throws {
        guard !list else {
            return Console.out(
                ControlEvent.Kind.allCases.map { $0.rawValue + "\n" }.sorted().joined())
        }
        let name = try await domainName()
        let waits = loop || all || event != nil || timeout != nil
        guard follow || waits else { return try await showPast(name) }
        var call = ControlClient.Call("GET", "v1", "events")
        call.query.append(("follow", "true"))
        if !follow { call.query.append(("new", "true")) }
        if let timeout { Self.leave(after: timeout) }
        let isOnce = waits && !follow && !loop
        try await options.client().lines(call) { line in
            guard let event = try? ControlJSON.decode(ControlEvent.self, from: Data(line.utf8)),
                shows(event, name)
            else { return }
            Console.out((options.output.json ? line : event.line) + "\n")
            if isOnce { Foundation.exit(0) }
        }
    }

    // Events carry names; a uuid is looked up once.
    private func domainName() async throws -> String? {
        guard let domain else { return nil }
        let call = ControlClient.Call("GET", "v1", "domains", domain)
        do {
            return try await options.client().send(call, as: DomainView.self).domain
        } catch  where error.httpStatus == 404 {
            return domain
        }
    }

    private func shows(_ shown: ControlEvent, _ name: String?) -> Bool {
        (name == nil || shown.domain == name)
            && (event == nil || shown.event == event.flatMap(Self.kind))
    }

    private func showPast(_ name: String?) async throws {
        let data = try await options.send(ControlClient.Call("GET", "v1", "events"))
        let kept: Data
        do {
            var body = try ControlJSON.decode(EventsBody.self, from: data)
            body.events.removeAll { !shows($0, name) }
            kept = try ControlJSON.encode(body) + Data("\n".utf8)
        } catch {
            throw ControlError.internalError("the server's answer is not understood: \(error)")
        }
        try options.output.show(kept, as: EventsBody.self) {
            $0.events.map { $0.line + "\n" }.joined()
        }
    }

    private static func leave(after seconds: UInt32) {
        Task {
            try? await Task.sleep(for: .seconds(Int64(seconds)))
            Foundation.exit(0)
        }
    }
}
