import Foundation
import Glibc
import Synchronization

/// Runs one program of the operator's, with a few bytes on its standard input and within a time.
///
/// On the caller's own thread, which waits; nobody else does.
enum ChildProcess {
    /// How a run ended.
    enum Outcome: Sendable, Hashable {
        case succeeded
        case failed(status: Int32)
        case killed(signal: Int32)
        /// It did not end in time, and was ended with all that it had started.
        case timedOut
        /// It could not be started.
        case notStarted(errno: Int32)
    }

    /// What a program that is asked to end has time for, in milliseconds.
    private static let graceMilliseconds = 2_000
    private static let lookMilliseconds = 10

    /// Runs a program with these bytes as its input, at most what fits a pipe (64 KiB).
    ///
    /// Its output goes to the server's standard error.
    static func run(
        _ path: String, environment: [String: String], input: [UInt8], milliseconds: Int
    ) -> Outcome {
        var ends: [Int32] = [-1, -1]
        // SAFETY: the array has room for the two numbers that the call stores.
        guard unsafe pipe(&ends) == 0 else { return .notStarted(errno: errno) }
        // A worker of a push that is started meanwhile must not keep the other end open.
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        let started = start(path, environment, input: ends[0])
        close(ends[0])
        guard case .success(let child) = started else {
            close(ends[1])
            if case .failure(let fault) = started { return .notStarted(errno: fault.number) }
            return .notStarted(errno: EAGAIN)
        }
        // What does not fit is left out rather than waited for; a program may also read nothing.
        _ = fcntl(ends[1], F_SETFL, O_NONBLOCK)
        // SAFETY: base address and count describe the live array.
        _ = unsafe input.withUnsafeBytes { unsafe write(ends[1], $0.baseAddress, $0.count) }
        close(ends[1])
        children.withLock { _ = $0.insert(child) }
        defer { children.withLock { _ = $0.remove(child) } }
        return wait(for: child, milliseconds)
    }

    /// Why a program of the system's has printed nothing of use.
    struct Unanswered: Error, Sendable, Hashable { let outcome: Outcome }

    /// What a program of the system's prints, at most what fits a pipe; throws when it does not end
    /// well and in time.
    static func output(
        of path: String, _ arguments: [String], milliseconds: Int
    ) throws(Unanswered) -> [UInt8] {
        var ends: [Int32] = [-1, -1]
        // SAFETY: the array has room for the two numbers that the call stores.
        guard unsafe pipe(&ends) == 0 else {
            throw Unanswered(outcome: .notStarted(errno: errno))
        }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        defer { close(ends[0]) }
        let started = ChildStart.spawn(
            path, [path] + arguments, environment: ProcessInfo.processInfo.environment,
            files: [(ends[1], STDOUT_FILENO)])
        close(ends[1])
        let child: pid_t
        switch started {
        case .success(let started): child = started
        case .failure(let fault): throw Unanswered(outcome: .notStarted(errno: fault.number))
        }
        children.withLock { _ = $0.insert(child) }
        defer { children.withLock { _ = $0.remove(child) } }
        let outcome = wait(for: child, milliseconds)
        guard outcome == .succeeded else { throw Unanswered(outcome: outcome) }
        _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        // SAFETY: base address and count describe the live array.
        let count = unsafe bytes.withUnsafeMutableBytes {
            unsafe read(ends[0], $0.baseAddress, $0.count)
        }
        return Array(bytes.prefix(max(count, 0)))
    }

    /// Programs that run now; each leads the group of all that it has started.
    private static let children = Mutex<Set<pid_t>>([])

    /// Ends at once what runs, with all that it has started.
    static func stopAll() {
        children.withLock { for child in $0 { kill(-child, SIGKILL) } }
    }

    private static func start(
        _ path: String, _ environment: [String: String], input: Int32
    ) -> Result<pid_t, SystemCalls.Failure> {
        ChildStart.spawn(
            path, [path], environment: environment,
            files: [(input, STDIN_FILENO), (STDERR_FILENO, STDOUT_FILENO)])
    }

    private static func wait(for child: pid_t, _ milliseconds: Int) -> Outcome {
        if let outcome = ended(child, within: milliseconds) {
            // What it has left running is not waited for, and may go on.
            return outcome
        }
        kill(-child, SIGTERM)
        _ = ended(child, within: graceMilliseconds)
        kill(-child, SIGKILL)
        // Only a program that the kernel itself cannot end is left behind.
        _ = ended(child, within: graceMilliseconds)
        return .timedOut
    }

    private static func ended(_ child: pid_t, within milliseconds: Int) -> Outcome? {
        let deadline = ContinuousClock.now + .milliseconds(milliseconds)
        while true {
            var status: Int32 = 0
            // SAFETY: the kernel fills the local during the call.
            let result = unsafe waitpid(child, &status, WNOHANG)
            if result == child { return outcome(status) }
            if result < 0, errno != EINTR { return .failed(status: -1) }
            if ContinuousClock.now >= deadline { return nil }
            usleep(UInt32(lookMilliseconds) * 1000)
        }
    }

    private static func outcome(_ status: Int32) -> Outcome {
        let signal = status & 0x7F
        guard signal == 0 else { return .killed(signal: signal) }
        let code = (status >> 8) & 0xFF
        return code == 0 ? .succeeded : .failed(status: code)
    }
}
