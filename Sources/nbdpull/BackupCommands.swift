import ArgumentParser
import Control
import Foundation

struct BackupBegin: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-begin",
        abstract: "Begin a backup job; prints its id and the URI of every backup export.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Argument(help: "Backup XML; - is standard input. (default: all disks, on a unix socket)")
    var backupxml: String?
    @Option(help: "Create a checkpoint together with the backup.") var checkpointxml: String?
    @Flag(help: "Use scratch files that exist already, and keep them.") var reuseExternal = false
    @Option(help: "End the job as failed after so many seconds.") var ttl: UInt64?
    @Flag(help: "Back a disk up in full that cannot start from its checkpoint; say why.")
    var fallbackFull = false
    @Flag(help: "A client's TRIM says what it needs no more: kept no longer, later reads fail.")
    var clientRelease = false

    func run() async throws {
        let body = BeginBody(
            backupXML: try backupxml.map(InputFile.text),
            checkpointXML: try checkpointxml.map(InputFile.text),
            reuseExternal: reuseExternal, ttlSeconds: ttl, fallbackFull: fallbackFull,
            clientRelease: clientRelease)
        let data = try await options.send(
            ControlClient.Call("POST", ["v1", "domains", domain, "jobs"], json: body))
        try options.output.show(data, as: BegunJob.self, ConsoleText.begun)
    }
}

struct BackupDumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-dumpxml", abstract: "Print a job's XML, every default filled in.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The job's id; needed when several run.") var job: String?

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call("GET", "v1", "domains", domain, "job", "xml").forJob(job))
        try options.output.show(data, as: BackupXMLBody.self) { $0.xml.endingInNewline + "\n" }
    }
}

struct BackupList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-list", abstract: "List the running backup jobs.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "Only this domain's.") var domain: String?

    func run() async throws {
        var call = ControlClient.Call("GET", "v1", "jobs")
        if let domain { call = ControlClient.Call("GET", "v1", "domains", domain, "jobs") }
        let data = try await options.send(call)
        try options.output.show(data, as: JobsBody.self) {
            ConsoleText.jobs($0.jobs, quiet: options.output.quiet)
        }
    }
}

struct BackupEnd: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-end", abstract: "End a backup job with a verdict.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The job's id; needed when several run.") var job: String?
    @Flag(help: "The backup is worthless: take back the checkpoint made with it.") var failed =
        false

    func run() async throws {
        let call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "job", "end"], json: EndBody(failed: failed))
        let data = try await options.send(call.forJob(job))
        try options.output.show(data, as: JobInfo.self) { info in
            guard !options.output.quiet else { return "" }
            let reason = info.errorMessage.map { ": \($0)" } ?? ""
            return "Backup \(info.id ?? "") ended: \(info.jobType)\(reason)\n\n"
        }
    }
}

struct DomJobInfo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobinfo", abstract: "Show a backup job's figures.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The job's id; needed when several run.") var job: String?
    @Flag(help: "The last finished job instead; it can be read once.") var completed = false
    @Flag(help: "With --completed: it can be read again.") var keepCompleted = false

    func run() async throws {
        var call = ControlClient.Call("GET", "v1", "domains", domain, "job").forJob(job)
        if completed || keepCompleted { call.query.append(("completed", "true")) }
        if keepCompleted { call.query.append(("keepCompleted", "true")) }
        let data = try await options.send(call)
        try options.output.show(data, as: JobInfo.self, ConsoleText.jobInfo)
    }
}

struct DomJobAbort: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobabort", abstract: "Abort a backup job.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "The domain's name.") var domain: String
    @Option(help: "The job's id; needed when several run.") var job: String?

    func run() async throws {
        let data = try await options.send(
            ControlClient.Call("POST", "v1", "domains", domain, "job", "abort").forJob(job))
        try options.output.show(data, as: JobInfo.self) { _ in options.output.quiet ? "" : "\n" }
    }
}

struct Event: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Print what happened lately, one line per event.")
    @OptionGroup var options: ClientOptions
    @Flag(help: "Go on with what happens from now on.") var follow = false

    func run() async throws {
        guard follow else {
            let data = try await options.send(ControlClient.Call("GET", "v1", "events"))
            try options.output.show(data, as: EventsBody.self) {
                $0.events.map { $0.line + "\n" }.joined()
            }
            return
        }
        var call = ControlClient.Call("GET", "v1", "events")
        call.query.append(("follow", "true"))
        try await options.client().lines(call) { line in
            if options.output.json {
                Console.out(line + "\n")
            } else if let event = try? ControlJSON.decode(
                ControlEvent.self, from: Data(line.utf8))
            {
                Console.out(event.line + "\n")
            }
        }
    }
}
