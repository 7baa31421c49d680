import ArgumentParser
import Control
import Foundation

struct BackupBegin: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-begin",
        abstract: "Begin a backup job; print its id and the URI of every export, or every target.",
        discussion: """
            What to back up is said by options, or by libvirt's XML in a file. Without either it \
            is a full backup of all disks, served on a unix socket in the run directory. With \
            --push, and with XML of libvirt's push mode, the server writes files instead, and the \
            job ends by itself. \
            --print-xml shows the XML that options stand for, and begins nothing.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Argument(
        help: "Backup XML; - is standard input. (default: what the options say)",
        completion: .file())
    var backupxml: String?
    @Option(name: .customLong("backupxml"), help: "The same as <backupxml>.")
    var backupxmlOption: String?
    @OptionGroup var request: BackupRequestOptions
    @Option(
        help: "The checkpoint to create as XML, instead of --checkpoint.", completion: .file())
    var checkpointxml: String?
    @Flag(help: "Use existing scratch files, and keep them; of a push, existing targets.")
    var reuseExternal = false
    @Option(help: "Push: bytes a second for all disks together, such as 100M. (default: no limit)")
    var bandwidth: String?
    @Flag(help: "Push: compress the clusters of qcow2 targets.") var compress = false
    @Flag(help: "Push: read the targets back and compare them before the job is completed.")
    var verify = false
    @Option(help: "End the job as failed after this many seconds.") var ttl: UInt64?
    @Flag(help: "If a disk cannot start from its checkpoint, back it up in full and say why.")
    var fallbackFull = false
    @Flag(help: "Treat TRIM as \"no longer needed\": free its scratch; later reads fail.")
    var clientRelease = false
    @Flag(help: "Freeze the guest's file systems for the instant; needs serve --libvirt-upstream.")
    var quiesce = false
    @Option(
        help: """
            Give the job this id, a UUID. The same again begins nothing: it prints the job that has \
            the id. For callers that lost the answer.
            """)
    var job: String?
    @Flag(help: "Show progress until the job has ended; exit with 1 unless it ended well.")
    var watch = false
    // A job here does not end with the machine.
    @Flag(name: .customLong("preserve-domain-on-shutdown"), help: .hidden) var preserve = false

    func validate() throws {
        let (_, file) = try target.and(backupxml, backupxmlOption)
        try request.checkBeside(
            xml: file, checkpointXML: checkpointxml, reuseExternal: reuseExternal)
        guard request.push || file != nil || !(bandwidth != nil || compress || verify) else {
            throw ValidationError(
                "--bandwidth, --compress and --verify need --push, or XML of push mode")
        }
        guard !watch || !request.printXML else {
            throw ValidationError("--watch excludes --print-xml, which begins nothing")
        }
    }

    func run() async throws {
        let (domain, file) = try target.and(backupxml, backupxmlOption)
        var body = BeginBody(
            backupXML: try file.map(InputFile.text),
            checkpointXML: try checkpointxml.map(InputFile.text),
            reuseExternal: reuseExternal, ttlSeconds: ttl, fallbackFull: fallbackFull,
            clientRelease: clientRelease, quiesce: quiesce, id: job)
        body.bandwidth = try bandwidth.map { try ScaledSize.bytes($0, unit: 1) }
        if compress { body.compress = true }
        if verify { body.verify = true }
        if request.given != nil {
            let made = try await request.request(domain: domain, try options.client())
            body.backupXML = made.backupXML
            body.checkpointXML = made.checkpointXML ?? body.checkpointXML
            guard !request.printXML else { return try show(body, made.notes) }
            if !options.output.json { note(made.notes) }
        }
        let data = try await options.send(
            ControlClient.Call("POST", ["v1", "domains", domain, "jobs"], json: body))
        // On standard error in JSON mode, too: whoever reads the answer may not look for it.
        try options.output.show(data, as: BegunJob.self, ConsoleText.begun)
        let begun = try? ControlJSON.decode(BegunJob.self, from: data)
        if let warning = begun?.warning { Console.error("warning: \(warning)") }
        if watch, let begun {
            try await JobWatch(options: options, domain: domain, interval: 1).run(begun.id)
        }
    }

    private func note(_ notes: [String]) {
        guard !options.output.quiet else { return }
        for note in notes { Console.error("note: \(note)") }
    }

    // Both documents, as a begin would send them.
    private func show(_ body: BeginBody, _ notes: [String]) throws {
        note(notes)
        let xml = BeginBody(backupXML: body.backupXML, checkpointXML: body.checkpointXML)
        Console.out(
            options.output.json
                ? String(decoding: try ControlJSON.encode(xml), as: UTF8.self) + "\n"
                : (body.backupXML ?? "") + (body.checkpointXML ?? ""))
    }
}

struct BackupDumpXML: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup-dumpxml", abstract: "Print a job's XML with all defaults filled in.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.", completion: LiveNames.jobs)
    var job: String?

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
    @Argument(help: "Only this domain's jobs.", completion: LiveNames.domains) var domain: String?
    @Option(
        name: .customLong("domain"), help: "The same as <domain>.", completion: LiveNames.domains)
    var domainOption: String?
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
    @Option(help: "The job's id; required while several run.", completion: LiveNames.jobs)
    var job: String?
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

struct DomJobAbort: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobabort", abstract: "Abort a backup job.",
        discussion: """
            As in libvirt, a checkpoint made with the job stays, unless the job was broken: then \
            it is taken back.
            """)
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.", completion: LiveNames.jobs)
    var job: String?

    func validate() throws { _ = try target.name() }

    func run() async throws {
        let domain = try target.name()
        let data = try await options.send(
            ControlClient.Call("POST", "v1", "domains", domain, "job", "abort").forJob(job))
        try options.output.show(data, as: JobInfo.self) { info in
            if info.success != true, info.jobType != "Cancelled", let message = info.errorMessage {
                Console.error("warning: the job had failed before: \(message)")
            }
            return options.output.quiet ? "" : "\n"
        }
    }
}
