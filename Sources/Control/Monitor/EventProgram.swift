import Foundation
import Synchronization

/// Runs the operator's program when something happens that somebody has to know (`--event-exec`).
///
/// One run after the other, on a thread of its own, each within a time; what comes meanwhile waits
/// in a queue that is bounded. Nothing else ever waits for it, and its failure is an event.
package final class EventProgram: Sendable {
    /// Events that wait for their run; of more the newest are left out, and how many is an event.
    package static let waitingMax = 256
    /// A run is ended after so long, in milliseconds.
    package static let runMillisecondsDefault = 30_000
    /// Bytes of the message that the environment and the input carry: a run takes 64 KiB at most.
    private static let messageBytesMax = 16 << 10
    /// How long a program that is ended at a stop may take for that, in seconds.
    private static let stopSeconds = 5.0

    /// What is told of: the end of a job or a threat to one, to the tracking of changes, to a disk,
    /// to the server's state or to a guest that stays frozen.
    package static let kinds: Set<ControlEvent.Kind> = [
        .jobEnd, .jobNotLasting, .jobBroken, .jobExpired, .jobIdle, .watermark, .trackingProblem,
        .trackingRecovered, .diskFailed, .diskProblem, .stateProblem, .guestThawFailed,
    ]

    private struct State {
        var waiting: [ControlEvent] = []
        var dropped = 0
        var isRunning = false
        var isOver = false
        var log: EventLog?
    }

    private let path: String
    private let environment: [String: String]
    private let milliseconds: Int
    private let queue = DispatchQueue(label: "nbdpull.event-exec")
    private let state = Mutex(State())

    /// Whether there was nothing at the path that can be run.
    private let isMissing: Bool

    /// `environment` is what every run is given besides the event.
    ///
    /// A program that is not there may come: machines have their disks without it.
    ///
    /// - Throws: 8 when the path is not absolute.
    package init(
        path: String, environment: [String: String],
        milliseconds: Int = EventProgram.runMillisecondsDefault
    ) throws(ControlError) {
        guard path.hasPrefix("/") else {
            throw .invalidArgument(
                what: "--event-exec '\(path)'", detail: "it must be an absolute path")
        }
        let file = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
        // A directory may be executed, too, in its way.
        isMissing =
            SystemCalls.identity(of: file)?.kind != .regular
            || !FileManager.default.isExecutableFile(atPath: path)
        self.path = path
        self.environment = environment
        self.milliseconds = milliseconds
    }

    /// Where failures are told; set once, before the first event.
    package func report(to log: EventLog) {
        state.withLock { $0.log = log }
        if isMissing {
            tell("'\(path)' is no program that can be run, so nobody is told of events")
        }
    }

    /// Takes note of an event; never waits.
    package func offer(_ event: ControlEvent) {
        guard Self.kinds.contains(event.event) else { return }
        let starts = state.withLock { state in
            guard !state.isOver else { return false }
            guard state.waiting.count < Self.waitingMax else {
                state.dropped += 1
                return false
            }
            state.waiting.append(event)
            defer { state.isRunning = true }
            return !state.isRunning
        }
        if starts { queue.async { [self] in runAll() } }
    }

    /// Waits for what is still to be told of, at most so long; afterwards nothing is run any more.
    package func finish(seconds: Double) {
        let done = DispatchSemaphore(value: 0)
        queue.async { done.signal() }
        let isDone = done.wait(timeout: .now() + seconds) == .success
        let left = state.withLock { state in
            state.isOver = true
            defer { state.waiting = [] }
            return state.waiting.count
        }
        if left > 0 {
            tell("the server stops, and '\(path)' was not run for the last \(left) events")
        }
        guard !isDone else { return }
        // What it runs now is ended with the server, and all that it has started.
        ChildProcess.stopAll()
        _ = done.wait(timeout: .now() + Self.stopSeconds)
    }

    private func runAll() {
        while let (event, dropped) = next() {
            if dropped > 0 {
                tell(
                    "\(dropped) events came faster than '\(path)' runs, and it was not run for them"
                )
            }
            run(event)
        }
    }

    private func next() -> (ControlEvent, Int)? {
        state.withLock { state in
            guard !state.waiting.isEmpty else {
                state.isRunning = false
                return nil
            }
            defer { state.dropped = 0 }
            return (state.waiting.removeFirst(), state.dropped)
        }
    }

    private func run(_ event: ControlEvent) {
        var event = event
        if let message = event.message, message.utf8.count > Self.messageBytesMax {
            event.message = String(
                decoding: message.utf8.prefix(Self.messageBytesMax), as: UTF8.self)
        }
        var input = (try? ControlJSON.encode(event)).map(Array.init) ?? []
        input.append(UInt8(ascii: "\n"))
        let outcome = ChildProcess.run(
            path, environment: environment.merging(Self.variables(event)) { $1 }, input: input,
            milliseconds: milliseconds)
        guard let reason = reason(outcome) else { return }
        tell("'\(path)' for \(event.event.rawValue) (event \(event.sequence)): \(reason)")
    }

    private func reason(_ outcome: ChildProcess.Outcome) -> String? {
        switch outcome {
        case .succeeded: nil
        case .failed(let status): "it ended with status \(status)"
        case .killed(let signal): "it was ended by signal \(signal)"
        case .timedOut: "it did not end within \(milliseconds / 1000) s and was stopped"
        case .notStarted(let errno): "it cannot be started: \(SystemCalls.errorText(errno))"
        }
    }

    // Not one of `kinds`: a failure is never told to the program that fails.
    private func tell(_ text: String) {
        let log = state.withLock { $0.log }
        log?.append(ControlEvent(.eventProgramFailed, message: text))
    }

    /// The event as variables of the environment; those that an event has nothing for are absent.
    static func variables(_ event: ControlEvent) -> [String: String] {
        let found: [(String, String?)] = [
            ("EVENT", event.event.rawValue), ("EVENT_SEQUENCE", String(event.sequence)),
            ("EVENT_TIME", ISO8601.text(event.time)), ("EVENT_SEVERITY", event.severity.name),
            ("EVENT_DOMAIN", event.domain), ("EVENT_JOB", event.id), ("EVENT_DISK", event.disk),
            ("EVENT_OUTCOME", event.outcome), ("EVENT_MESSAGE", event.message),
            ("EVENT_USED_BYTES", event.usedBytes.map(String.init)),
            ("EVENT_LIMIT_BYTES", event.limitBytes.map(String.init)),
        ]
        var variables: [String: String] = [:]
        for (name, value) in found {
            variables[name] = value.map { $0.replacing("\0", with: "") }
        }
        return variables
    }
}

extension ControlEvent.Severity {
    /// As logs call it.
    var name: String {
        switch self {
        case .debug: "debug"
        case .info: "info"
        case .warning: "warning"
        case .error: "error"
        }
    }
}
