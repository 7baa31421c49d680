import Foundation
import Glibc
package import ServerInterface
import Synchronization

/// Starts workers as processes of this very program.
package struct PushProcesses: PushStarting {
    /// The command by which the program becomes a worker.
    let command: String

    package init(command: String) { self.command = command }

    package func start(
        _ order: PushOrder, _ hear: @escaping @Sendable (PushReport) -> Void
    ) throws(ControlError) -> any PushRun {
        do throws(SystemCalls.Failure) {
            let process = try PushProcess(command)
            process.listen(hear)
            process.tell(.prepare(order))
            return process
        } catch {
            throw .pushFailed(order.path, "no worker can be started: \(error.text)")
        }
    }
}

/// One worker process: commands on its standard input, reports on its standard output.
///
/// It ends when its input does, so none outlives the server.
final class PushProcess: PushRun {
    private struct Input: ~Copyable {
        var descriptor: Int32
        /// Nobody may use its number any more.
        var isGone = false
        deinit { if descriptor >= 0 { close(descriptor) } }
    }

    private let process: pid_t
    private let output: Int32
    private let input: Mutex<Input>
    private static let lineBytesMax = 64 << 10

    init(_ command: String) throws(SystemCalls.Failure) {
        let (theirInput, ours) = try Self.pair()
        let reports: (ours: Int32, theirs: Int32)
        do throws(SystemCalls.Failure) {
            reports = try Self.pair()
        } catch {
            close(theirInput)
            close(ours)
            throw error
        }
        input = Mutex(Input(descriptor: ours))
        output = reports.ours
        let started = Self.spawn(command, input: theirInput, output: reports.theirs)
        close(theirInput)
        close(reports.theirs)
        switch started {
        case .success(let child): process = child
        case .failure(let failure):
            process = 0
            close(reports.ours)
            throw failure
        }
    }

    // Both ends are closed in programs that are started; what a program gets is a copy.
    static func pair() throws(SystemCalls.Failure) -> (Int32, Int32) {
        var ends: [Int32] = [-1, -1]
        // SAFETY: the array has room for the two numbers that the call stores.
        let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        guard unsafe socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            throw SystemCalls.Failure(call: "socketpair", number: errno)
        }
        return (ends[0], ends[1])
    }

    private static func spawn(
        _ command: String, input: Int32, output: Int32
    ) -> Result<pid_t, SystemCalls.Failure> {
        // The very program that runs, also after its file has been replaced.
        ChildStart.spawn(
            "/proc/self/exe", ["nbdpull", command],
            environment: ProcessInfo.processInfo.environment,
            files: [(input, STDIN_FILENO), (output, STDOUT_FILENO)])
    }

    // A thread of its own: nobody waits for it, should the worker not even end when it is killed.
    func listen(_ hear: @escaping @Sendable (PushReport) -> Void) {
        Thread.detachNewThread { [self] in
            var isDone = false
            var last: String?
            Self.readLines(output) { line in
                guard let report = try? JSONDecoder().decode(PushReport.self, from: line) else {
                    last = "it said '\(String(decoding: line.prefix(200), as: UTF8.self))'"
                    return
                }
                if report == .done { isDone = true }
                if case .failed = report { isDone = true }
                hear(report)
            }
            close(output)
            let status = awaitEnd()
            guard !isDone else { return }
            let signal = status & 0x7F
            let end =
                signal == 0
                ? "ended with status \((status >> 8) & 0xFF)" : "was killed by signal \(signal)"
            hear(.failed("the process that writes it \(end)" + (last.map { ": \($0)" } ?? "")))
        }
    }

    // Not by a call that waits: until the last one the process has its number, and may be killed.
    private func awaitEnd() -> Int32 {
        var status: Int32 = 0
        while true {
            let isGone = input.withLock { input in
                // SAFETY: the kernel fills the local during the call.
                let result = unsafe waitpid(process, &status, WNOHANG)
                input.isGone = result == process || (result < 0 && errno != EINTR)
                return input.isGone
            }
            if isGone { return status }
            usleep(2_000)
        }
    }

    static func readLines(_ descriptor: Int32, _ body: (Data) -> Void) {
        var line = Data()
        var bytes = [UInt8](repeating: 0, count: 4096)
        while true {
            // SAFETY: base address and count describe the live array.
            let count = unsafe bytes.withUnsafeMutableBytes {
                unsafe read(descriptor, $0.baseAddress, $0.count)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return }
            for byte in bytes[..<count] {
                if byte == UInt8(ascii: "\n") {
                    body(line)
                    line.removeAll(keepingCapacity: true)
                } else if line.count < lineBytesMax {
                    line.append(byte)
                }
            }
        }
    }

    func tell(_ command: PushCommand) {
        guard var data = try? JSONEncoder().encode(command) else { return }
        data.append(UInt8(ascii: "\n"))
        input.withLock { input in
            guard input.descriptor >= 0 else { return }
            // A few hundred bytes, which a socket always takes; to one that has ended, nothing is
            // said.
            // SAFETY: base address and count describe the live data.
            _ = unsafe data.withUnsafeBytes { bytes in
                unsafe write(input.descriptor, bytes.baseAddress, bytes.count)
            }
        }
    }

    func stop() {
        input.withLock { input in
            guard input.descriptor >= 0 else { return }
            close(input.descriptor)
            input.descriptor = -1
            if !input.isGone { kill(process, SIGKILL) }
        }
    }
}
