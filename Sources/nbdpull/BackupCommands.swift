import ArgumentParser
import Control
import Foundation

struct BackupBegin: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-begin",
        abstract: "Begin a backup job; print its id and the URI of every backup export.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Argument(help: "Backup XML; - is standard input. (default: all disks, on a unix socket)")
    var backupxml: String?
    @Option(name: .customLong("backupxml"), help: "The same as <backupxml>.")
    var backupxmlOption: String?
    @Option(help: "Create a checkpoint at the backup's instant.") var checkpointxml: String?
    @Flag(help: "Use existing scratch files, and keep them.") var reuseExternal = false
    @Option(help: "End the job as failed after this many seconds.") var ttl: UInt64?
    @Flag(help: "If a disk cannot start from its checkpoint, back it up in full and say why.")
    var fallbackFull = false
    @Flag(help: "Treat TRIM as \"no longer needed\": free its scratch; later reads fail.")
    var clientRelease = false
    @Flag(help: "Freeze the guest's file systems for the instant; needs serve --libvirt-upstream.")
    var quiesce = false
    // A job here does not end with the machine.
    @Flag(name: .customLong("preserve-domain-on-shutdown"), help: .hidden) var preserve = false

    func validate() throws { _ = try target.and(backupxml, backupxmlOption) }

    func run() async throws {
        let (domain, file) = try target.and(backupxml, backupxmlOption)
        let body = BeginBody(
            backupXML: try file.map(InputFile.text),
            checkpointXML: try checkpointxml.map(InputFile.text),
            reuseExternal: reuseExternal, ttlSeconds: ttl, fallbackFull: fallbackFull,
            clientRelease: clientRelease, quiesce: quiesce)
        let data = try await options.send(
            ControlClient.Call("POST", ["v1", "domains", domain, "jobs"], json: body))
        try options.output.show(data, as: BegunJob.self, ConsoleText.begun)
    }
}

struct BackupDumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-dumpxml", abstract: "Print a job's XML with all defaults filled in.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.") var job: String?

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let domain = try target.name()
        let data = try await options.send(
            ControlClient.Call("GET", "v1", "domains", domain, "job", "xml").forJob(job))
        try options.output.show(data, as: BackupXMLBody.self) { $0.xml.endingInNewline + "\n" }
    }
}

struct BackupList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-list", abstract: "List the running or ended backup jobs.")
    @OptionGroup var options: ClientOptions
    @Argument(help: "Only this domain's jobs.") var domain: String?
    @Option(name: .customLong("domain"), help: "The same as <domain>.") var domainOption: String?
    @Flag(help: "List the last ended jobs instead; reading them changes nothing.")
    var completed = false

    func validate() throws { _ = try Words.fill([domain], [domainOption]) }

    func run() async throws {
        var call = ControlClient.Call("GET", "v1", "jobs")
        if let domain = domain ?? domainOption {
            call = ControlClient.Call("GET", "v1", "domains", domain, "jobs")
        }
        if completed {
            call.query.append(("completed", "true"))
            let data = try await options.send(call)
            return try options.output.show(data, as: EndedJobsBody.self) {
                ConsoleText.endedJobs($0.jobs, quiet: options.output.quiet)
            }
        }
        let data = try await options.send(call)
        try options.output.show(data, as: JobsBody.self) {
            ConsoleText.jobs($0.jobs, quiet: options.output.quiet)
        }
    }
}

struct BackupEnd: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-end", abstract: "End a backup job with a verdict.",
        discussion: """
            A checkpoint made with the job stays only if the backup is good. A job that broke ends \
            as failed in any case: its checkpoint is taken back, and the exit status is 1.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.") var job: String?
    @Flag(help: "The backup is worthless: take back the checkpoint made with it.") var failed =
        false

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let domain = try target.name()
        let call = try ControlClient.Call(
            "POST", ["v1", "domains", domain, "job", "end"], json: EndBody(failed: failed))
        let data = try await options.send(call.forJob(job))
        var ended = JobInfo.none
        try options.output.show(data, as: JobInfo.self) { info in
            ended = info
            guard !options.output.quiet else { return "" }
            let reason = info.errorMessage.map { ": \($0)" } ?? ""
            return "Backup \(info.id ?? "") ended: \(info.jobType)\(reason)\n\n"
        }
        guard !failed, ended.success != true else { return }
        throw Self.notGood(ended)
    }

    private static func notGood(_ info: JobInfo) -> ControlError {
        var detail = "backup '\(info.id ?? "")' is not good: \(info.errorMessage ?? info.jobType)"
        if let checkpoint = info.checkpoint {
            detail += "; checkpoint '\(checkpoint)' is taken back"
        }
        return ControlError(.operationFailed, code: "backup-failed", status: 409, detail: detail)
    }
}

struct DomJobInfo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobinfo", abstract: "Show a backup job's figures.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.") var job: String?
    @Flag(help: "Show the last ended job, once; backup-list --completed keeps it.")
    var completed = false
    @Flag(help: "With --completed: leave it to be shown again.") var keepCompleted = false
    @Flag(help: "Use libvirt's names and numbers.") var rawstats = false
    // Ended jobs are shown whatever became of them.
    @Flag(help: .hidden) var anystats = false

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let domain = try target.name()
        var call = ControlClient.Call("GET", "v1", "domains", domain, "job").forJob(job)
        if completed || keepCompleted { call.query.append(("completed", "true")) }
        if keepCompleted { call.query.append(("keepCompleted", "true")) }
        let data = try await options.send(call)
        try options.output.show(
            data, as: JobInfo.self, rawstats ? ConsoleText.rawJobInfo : ConsoleText.jobInfo)
    }
}

struct DomJobAbort: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobabort", abstract: "Abort a backup job.",
        discussion: """
            As in libvirt, a checkpoint made with the job stays, unless the job was broken: then \
            it is taken back.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.") var job: String?

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let domain = try target.name()
        let data = try await options.send(
            ControlClient.Call("POST", "v1", "domains", domain, "job", "abort").forJob(job))
        try options.output.show(data, as: JobInfo.self) { info in
            if info.success != true, let message = info.errorMessage {
                Console.error("warning: the job had failed before: \(message)")
            }
            return options.output.quiet ? "" : "\n"
        }
    }
}
