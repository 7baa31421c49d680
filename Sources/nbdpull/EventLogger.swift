import Control
import Dispatch
import Foundation
import Logging
import Synchronization

/// Writes every event as a line of the log, at its level.
///
/// On a thread of its own: a standard error that is not read must not hold anything up.
final class EventLogger: Sendable {
    /// Lines waiting to be written before more are dropped.
    private static let waitingMax = 4096
    /// How long the end of the program waits for the last lines.
    private static let flushSeconds = 1.0

    private struct Count {
        var waiting = 0
        var dropped = 0
    }

    private let logger: Logger
    private let queue = Console.queue
    private let count = Mutex(Count())

    init(level: Logger.Level) {
        var logger = Logger(label: "nbdpull") { StreamLogHandler.standardError(label: $0) }
        logger.logLevel = level
        self.logger = logger
        Console.beginServing()
    }

    /// Writes an event when its turn comes.
    func write(_ event: ControlEvent) {
        let level: Logger.Level =
            switch event.severity {
            case .debug: .debug
            case .info: .info
            case .warning: .warning
            case .error: .error
            }
        guard level >= logger.logLevel else { return }
        let isTaken = count.withLock { count in
            guard count.waiting < Self.waitingMax else {
                count.dropped += 1
                return false
            }
            count.waiting += 1
            return true
        }
        guard isTaken else { return }
        queue.async { [self] in
            logger.log(level: level, "\(event.text)")
            let dropped = count.withLock { count in
                count.waiting -= 1
                defer { count.dropped = 0 }
                return count.dropped
            }
            if dropped > 0 { logger.warning("\(dropped) lines of the log were dropped") }
        }
    }

    /// Waits a moment for what is still to be written.
    ///
    /// When nobody reads it the program ends here: its orderly end would wait for standard error,
    /// which a line that is stuck has locked.
    func flush(orLeaveWith status: Int32) {
        let done = DispatchSemaphore(value: 0)
        queue.async { done.signal() }
        if done.wait(timeout: .now() + Self.flushSeconds) == .timedOut { _exit(status) }
    }
}
