import ArgumentParser
import Control
import Foundation
import Glibc

struct DomJobInfo: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "domjobinfo", abstract: "Show a backup job's figures.")
    @OptionGroup var options: ClientOptions
    @OptionGroup var target: DomainArgument
    @Option(help: "The job's id; required while several run.", completion: LiveNames.jobs)
    var job: String?
    @Flag(help: "Show the last ended job, once; backup-list --completed keeps it.")
    var completed = false
    @Flag(help: "With --completed: leave it to be shown again.") var keepCompleted = false
    @Flag(help: "Use libvirt's names and numbers.") var rawstats = false
    @Flag(help: "Show progress until the job has ended; exit with 1 unless it ended well.")
    var watch = false
    @Option(help: "With --watch: seconds between two looks. (default: 1)") var interval: Int?
    // Ended jobs are shown whatever became of them.
    @Flag(help: .hidden) var anystats = false

    func validate() throws {
        _ = try target.name()
        guard !watch || !(completed || keepCompleted || rawstats) else {
            throw ValidationError("--watch excludes --completed, --keep-completed and --rawstats")
        }
        guard watch || interval == nil else { throw ValidationError("--interval needs --watch") }
        guard interval.map({ (1...3600).contains($0) }) ?? true else {
            throw ValidationError("--interval must be between 1 and 3600 seconds")
        }
    }

    func run() async throws {
        let domain = try target.name()
        guard !watch else {
            return try await JobWatch(options: options, domain: domain, interval: interval ?? 1)
                .run(job)
        }
        var call = ControlClient.Call("GET", "v1", "domains", domain, "job").forJob(job)
        if completed || keepCompleted { call.query.append(("completed", "true")) }
        if keepCompleted { call.query.append(("keepCompleted", "true")) }
        let data = try await options.send(call)
        try options.output.show(
            data, as: JobInfo.self, rawstats ? ConsoleText.rawJobInfo : ConsoleText.jobInfo)
    }
}

/// Follows one job to its end.
struct JobWatch {
    let options: ClientOptions
    let domain: String
    /// Seconds.
    let interval: Int

    /// A server that is being restarted has its jobs again after less.
    private static let patienceSeconds = 60.0

    /// Prints a line now and then; on a terminal one line that is written over.
    ///
    /// A job that is named may have ended already.
    ///
    /// - Throws: when there is no job, and when it did not end well.
    func run(_ wanted: String?) async throws {
        let client = try options.client()
        let first = try await look(client, wanted)
        guard let id = first?.id ?? wanted else {
            throw ControlError.invalidArgument(
                what: "domain '\(domain)'", detail: "no backup job is running")
        }
        guard let first else { return try await finish(client, id) }
        var rate = ConsoleText.Rate()
        var shown: JobInfo? = first
        var lastAnswer = Date()
        while true {
            if let info = shown {
                rate.note(bytes: info.bytesRead ?? 0, at: Date().timeIntervalSince1970)
                try show(info, rate.bytesPerSecond)
            }
            try await Task.sleep(for: .seconds(interval))
            do throws(ControlError) {
                shown = try await look(client, id)
                lastAnswer = Date()
            } catch {
                guard error.code == "server-unreachable",
                    Date().timeIntervalSince(lastAnswer) < Self.patienceSeconds
                else { throw error }
                continue
            }
            if shown == nil { return try await finish(client, id) }
        }
    }

    // Nil: there is no such job any more.
    private func look(
        _ client: ControlClient, _ id: String?
    ) async throws(ControlError) -> JobInfo? {
        let call = ControlClient.Call("GET", "v1", "domains", domain, "job").forJob(id)
        do throws(ControlError) {
            let info = try await client.send(call, as: JobInfo.self)
            return info.id == nil ? nil : info
        } catch {
            guard error.code == "job-not-found" else { throw error }
            return nil
        }
    }

    private func finish(_ client: ControlClient, _ id: String) async throws {
        var call = ControlClient.Call("GET", "v1", "domains", domain, "job").forJob(id)
        call.query += [("completed", "true"), ("keepCompleted", "true")]
        let ended = try await client.send(call, as: JobInfo.self)
        if options.output.json {
            Console.out(String(decoding: try ControlJSON.encode(ended), as: UTF8.self) + "\n")
        } else {
            if Self.isTerminal { Console.out("\n") }
            let outcome = ended.outcome ?? ended.jobType
            let reason = ended.errorMessage.map { ": \($0)" } ?? ""
            Console.out("Backup \(id) ended: \(outcome)\(reason)\n")
        }
        // Said already, so nothing more.
        if ended.success != true { throw ExitCode.failure }
    }

    private func show(_ info: JobInfo, _ rate: Double?) throws {
        if options.output.json {
            Console.out(String(decoding: try ControlJSON.encode(info), as: UTF8.self) + "\n")
            return
        }
        let line = ConsoleText.progress(info, bytesPerSecond: rate)
        Console.out(Self.isTerminal ? "\r\(line)\u{1B}[K" : line + "\n")
    }

    private static let isTerminal = isatty(STDOUT_FILENO) == 1
}
