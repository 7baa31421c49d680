import Foundation
import Glibc
import ServerInterface
import Synchronization

/// The process that keeps adapters, as the server has it.
///
/// It ends when its standard input does, and ends all adapters then: none outlives the server.
final class KeeperProcess: Sendable {
    private let input: Mutex<Int32>

    /// Starts this very program by a command word; `hear` is called on a thread of its own, at
    /// last, once, with nil.
    init(
        _ command: String, _ hear: @escaping @Sendable (KeeperReport?) -> Void
    ) throws(SystemCalls.Failure) {
        let commands = try PushProcess.pair()
        let reports: (ours: Int32, theirs: Int32)
        do throws(SystemCalls.Failure) {
            reports = try PushProcess.pair()
        } catch {
            close(commands.0)
            close(commands.1)
            throw error
        }
        let started = ChildStart.spawn(
            "/proc/self/exe", ["nbdpull", command],
            environment: ProcessInfo.processInfo.environment,
            files: [(commands.0, STDIN_FILENO), (reports.theirs, STDOUT_FILENO)])
        close(commands.0)
        close(reports.theirs)
        switch started {
        case .failure(let failure):
            close(commands.1)
            close(reports.ours)
            throw failure
        case .success(let process):
            input = Mutex(commands.1)
            Thread.detachNewThread {
                PushProcess.readLines(reports.ours) { line in
                    guard let report = try? JSONDecoder().decode(KeeperReport.self, from: line)
                    else { return }
                    hear(report)
                }
                close(reports.ours)
                var status: Int32 = 0
                // SAFETY: the kernel fills the local during the call.
                while unsafe waitpid(process, &status, 0) < 0, errno == EINTR {}
                hear(nil)
            }
        }
    }

    deinit { input.withLock { _ = close($0) } }

    func tell(_ command: KeeperCommand) {
        guard var data = try? JSONEncoder().encode(command) else { return }
        data.append(UInt8(ascii: "\n"))
        input.withLock { input in
            var rest = data[...]
            while !rest.isEmpty {
                // SAFETY: base address and count describe the live data.
                let count = unsafe rest.withUnsafeBytes { bytes in
                    unsafe write(input, bytes.baseAddress, bytes.count)
                }
                if count < 0, errno == EINTR { continue }
                // To one that has ended nothing is said; that it has is heard.
                guard count > 0 else { return }
                rest = rest.dropFirst(count)
            }
        }
    }
}
