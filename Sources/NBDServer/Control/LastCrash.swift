import NBDProtocol
package import ServerInterface
import Synchronization
import SystemLayer

/// What the process before this one has noted of its end.
enum LastCrash {
    /// Where a server notes what it does.
    static func path(in directory: String) -> String { directory + "/flight" }

    /// The same for one that has not yet taken over from another: what that one notes stays where
    /// it is, as it may go on.
    private static func newcomersPath(in directory: String) -> String { directory + "/flight.next" }

    /// Where a server notes what it does, and how the one before it crashed; `read` tells a
    /// newcomer later.
    ///
    /// Without memory that outlives the process there is neither.
    static func recorder(
        _ configuration: ServerConfiguration, _ directory: String?
    ) throws(SystemFault) -> (FlightRecorder, CrashReport?) {
        guard let directory else {
            if !configuration.build.isEmpty { FlightRecorder.endAtOnce() }
            return (try FlightRecorder(), nil)
        }
        let path =
            configuration.takesOver ? newcomersPath(in: directory) : path(in: directory)
        let report =
            configuration.takesOver
            ? takeNewcomers(directory) : read(directory) ?? takeNewcomers(directory)
        let facts = [
            "boot \(StateFiles.bootID())", "build \(configuration.build)",
            "process \(SystemFacts.processID)", "started \(MonotonicClock.wallTime())",
        ]
        for _ in 0..<Self.attempts {
            do throws(SystemFault) {
                try StateFiles.makeDirectory(directory)
                guard StateFiles.isPrivate(directory), StateFiles.isMemory(directory) else { break }
                return (try FlightRecorder(path: path, facts: facts), report)
            } catch {
                // A server that stops in this moment removes the directory while it is empty.
                guard error.errno == Errno.notFound else { break }
            }
        }
        return (try FlightRecorder(), report)
    }

    private static let attempts = 3

    /// How the server crashed that was the last to note what it does.
    static func read(_ directory: String) -> CrashReport? {
        LeftFlight.read(path(in: directory)).flatMap(report(of:))
    }

    /// How a newcomer crashed before it had taken over; told once, as its file goes.
    ///
    /// To be called only while no newcomer runs.
    static func takeNewcomers(_ directory: String) -> CrashReport? {
        let path = newcomersPath(in: directory)
        let found = LeftFlight.read(path).flatMap(report(of:))
        // Otherwise it were told again.
        do throws(SystemFault) { try FileCalls.remove(path) } catch { return nil }
        return found.map {
            var crash = $0
            crash.isNewcomers = true
            return crash
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
        case .openingDisk: return disk(doing.text)
        case .resumingJob: return .job(id: doing.text)
        case .request, .completion, .message, .copy, .turn, .record:
            guard let name = doing.export else { return nil }
            if let export = value("disk ", name) { return disk(export) }
            return value("job ", name).map { .job(id: String($0.prefix { $0 != " " })) }
        case .nothing, .tick, .handshake, .beginningJob, .accepting: return nil
        }
    }

    private static func disk(_ export: String) -> CrashReport.Subject {
        .disk(export: CrashReport.Subject.beginning(of: export))
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
        case .turn: "a connection's turn" + (doing.export.map { ", \($0)" } ?? "")
        case .record: "a record of TLS" + (doing.export.map { ", \($0)" } ?? "")
        case .accepting: "a connection that comes"
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
        case .nothing, .request, .completion, .message, .tick, .handshake, .copy, .turn, .record,
            .accepting:
            false
        }
    }
}

extension NBDServer {
    /// How the server before this one crashed, if it did.
    package var lastCrash: CrashReport? { crash.withLock { $0 } }

    /// The server before this one has let go: what it has noted is read, and from now on the next
    /// server reads what this one notes.
    package func hasTakenOver() {
        guard shared.configuration.takesOver, let jobMemory else { return }
        let report = LastCrash.read(jobMemory)
        crash.withLock { $0 = report ?? $0 }
        // Without it a crash of this server is not told of.
        try? shared.flight.move(to: LastCrash.path(in: jobMemory))
    }
}
