import NBDProtocol
package import ServerInterface
import SystemLayer

/// What the process before this one has noted of its end.
enum LastCrash {
    /// Where a server notes what it does, and how the one before it crashed.
    ///
    /// Without memory that outlives the process there is neither.
    static func recorder(
        _ configuration: ServerConfiguration, _ directory: String?
    ) throws(SystemFault) -> (FlightRecorder, CrashReport?) {
        guard let directory else {
            if !configuration.build.isEmpty { FlightRecorder.endAtOnce() }
            return (try FlightRecorder(), nil)
        }
        let path = directory + "/flight"
        let report = LeftFlight.read(path).flatMap(report(of:))
        let facts = [
            "boot \(StateFiles.bootID())", "build \(configuration.build)",
            "process \(SystemFacts.processID)", "started \(MonotonicClock.wallTime())",
        ]
        do throws(SystemFault) {
            try StateFiles.makeDirectory(directory)
            guard StateFiles.isPrivate(directory), StateFiles.isMemory(directory) else {
                return (try FlightRecorder(), report)
            }
            return (try FlightRecorder(path: path, facts: facts), report)
        } catch {
            return (try FlightRecorder(), report)
        }
    }

    private static func report(of left: LeftFlight) -> CrashReport? {
        guard let crash = left.crash else { return nil }
        let started = left.facts["started"].flatMap { UInt64($0) } ?? crash.time
        let base = left.facts["base"].flatMap { UInt64($0) } ?? 0
        let own = left.doings.filter { $0.thread == crash.thread }
        // The innermost of calls within each other came last.
        let doing = own.last { $0.activity.isCall } ?? own.first
        return CrashReport(
            build: left.facts["build"] ?? "", processID: left.facts["process"] ?? "",
            signal: crash.signal, time: crash.time,
            secondsServed: crash.time > started ? (crash.time - started) / 1_000_000_000 : 0,
            thread: crash.threadName,
            program: crash.program >= base
                ? "0x" + String(crash.program - base, radix: 16)
                : String(crash.program, radix: 16), address: crash.address,
            subject: doing.flatMap(subject), doing: doing.map(text) ?? "",
            others: left.doings.filter { $0.thread != crash.thread }.map(text))
    }

    private static func subject(_ doing: LeftFlight.Doing) -> CrashReport.Subject? {
        switch doing.activity {
        case .openingDisk: return .disk(export: doing.text)
        case .resumingJob: return .job(id: doing.text)
        case .request, .completion, .message, .copy:
            guard let name = doing.export else { return nil }
            if let export = value("disk ", name) { return .disk(export: export) }
            return value("job ", name).map { .job(id: String($0.prefix { $0 != " " })) }
        case .nothing, .tick, .handshake, .beginningJob: return nil
        }
    }

    private static func value(_ key: String, _ text: String) -> String? {
        text.hasPrefix(key) ? String(text.dropFirst(key.count)) : nil
    }

    private static func text(_ doing: LeftFlight.Doing) -> String {
        let export = doing.export ?? "unknown export"
        let command = Command(rawValue: doing.command).map { "\($0)" } ?? "\(doing.command)"
        let range = "\(command) of \(doing.length) bytes at \(doing.offset), \(export)"
        return switch doing.activity {
        case .nothing: "nothing"
        case .request: "request: \(range)"
        case .completion: "an operation that is over, of request: \(range)"
        case .message: "a message of a call" + (doing.export.map { ", \($0)" } ?? "")
        case .tick: "the clock's tick"
        case .handshake: "a handshake"
        case .copy: "old content that was read, \(export)"
        case .openingDisk: "opening disk \(doing.text)"
        case .resumingJob: "taking up job \(doing.text)"
        case .beginningJob: "beginning job \(doing.text)"
        }
    }
}

extension FlightActivity {
    fileprivate var isCall: Bool {
        switch self {
        case .openingDisk, .resumingJob, .beginningJob: true
        case .nothing, .request, .completion, .message, .tick, .handshake, .copy: false
        }
    }
}

extension NBDServer {
    /// How the server before this one crashed, if it did.
    package var lastCrash: CrashReport? { crash }
}
